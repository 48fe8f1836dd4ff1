"""Parts of `bench_optimise_peers.py`: the models, the other optimisers, and the clock that is the same for all."""
