"""Programs that run in environments of their own (see `convert.environments`): no module of forwardpass is there."""
