"""Training: from labels, from a teacher, or both; every step repeatable, so that a lost process costs seconds."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from forwardpass.core.protocols import Progress
from forwardpass.core.samples import SampleGroup, Samples, fingerprint_samples
from forwardpass.errors import InvalidSamples, InvalidStudent
from forwardpass.lean.checkpoints import load_checkpoint, save_checkpoint
from forwardpass.lean.counting import given
from forwardpass.lean.planning import learning_rate_factor
from forwardpass.lean.values import TrainSettings
from forwardpass.runtimes.torch import left_as_found, named_outputs

__all__ = ["NO_CLASS", "Training", "are_classes", "check_student", "train_module"]

NO_CLASS = -100
"""The label of a sample that no class is known of: PyTorch passes over it."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training did: its steps, how many of them an earlier process had done, and the loss it ended with."""

    num_steps: int
    num_resumed: int
    loss: float


def train_module(
    module: nn.Module,
    samples: Samples,
    *,
    teacher: nn.Module | None = None,
    settings: TrainSettings,
    pairs: Sequence[tuple[str, str]] = (),
    checkpoint: Path | None = None,
    progress: Progress,
) -> Training:
    """Train `module` in place on the labels of the samples, on what the teacher answers for them, or on both.

    Integer labels are classes of the first output; other labels are its values. `pairs` names layers of the teacher
    and of the module whose outputs belong together; where their widths differ, a projection that is thrown away
    afterwards is learned between them. With `checkpoint`, a process that was lost goes on where its last checkpoint
    was and ends with the same weights. Quantisation-aware training is this with a copy that rounds (`round_copy`).

    Raises:
        InvalidSamples: there are neither labels nor a teacher.
        InvalidStudent: the outputs of the module and its teacher, or the labels, have different shapes.
    """
    if teacher is None and not samples.has_labels:
        raise InvalidSamples(
            origin="the training",
            reason="they have no labels, and there is no teacher to learn from",
            hint="Add an array 'labels', or give the network before it was made leaner as the teacher.",
        )
    with left_as_found(module), left_as_found(teacher), torch.random.fork_rng(devices=[]):
        torch.set_num_threads(settings.num_threads)
        lesson = _Lesson(module, samples, teacher, settings, pairs)
        return _run(lesson, settings, checkpoint, progress)


def check_student(student: nn.Module, teacher: nn.Module, samples: Samples, *, name: str) -> None:
    """Raise `InvalidStudent` unless the student answers in the teacher's outputs and shapes."""
    group = samples.groups[0].take(slice(0, 2))
    with torch.no_grad():
        theirs = named_outputs(teacher(**given(group.inputs)))
        try:
            ours = named_outputs(student(**given(group.inputs)))
        except Exception as error:  # whatever the student's forward() raises
            reason = f"its forward() raised {type(error).__name__} for the samples: {str(error).splitlines()[0][:200]}"
            hint = "Give it the arguments of the source's forward()."
            raise InvalidStudent(student=name, reason=reason, hint=hint) from error
    _check_shapes(ours, theirs, name)


def _check_shapes(ours: dict[str, Tensor], theirs: dict[str, Tensor], name: str) -> None:
    hint = "Return the same outputs, in the same order and shapes."
    if len(ours) != len(theirs):
        reason = f"it has {len(ours)} outputs ({', '.join(ours)}), the source {len(theirs)} ({', '.join(theirs)})"
        raise InvalidStudent(student=name, reason=reason, hint=hint)
    for (mine, one), (other, two) in zip(ours.items(), theirs.items(), strict=True):
        if one.shape != two.shape:
            reason = f"its output '{mine}' has shape {list(one.shape)}, the source's '{other}' {list(two.shape)}"
            raise InvalidStudent(student=name, reason=reason, hint=hint)


class _Lesson:
    """One training: who learns what from whom. Step n is the same in every process."""

    def __init__(
        self,
        module: nn.Module,
        samples: Samples,
        teacher: nn.Module | None,
        settings: TrainSettings,
        pairs: Sequence[tuple[str, str]],
    ) -> None:
        self.module = module.train()
        self.samples = samples
        self.teacher = teacher.eval() if teacher is not None else None
        self.settings = settings
        self.pairs = tuple(pairs) if teacher is not None else ()
        if teacher is not None:
            check_student(module.eval(), teacher, samples, name=type(module).__name__)
            module.train()
        torch.manual_seed(settings.seed)
        self.projections = self._projections()
        trained = [*(it for it in module.parameters() if it.requires_grad), *self.projections.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=1e-4)
        self.num_steps_per_epoch = sum(1 for _ in self._batches(0))
        self.num_steps = settings.num_epochs * self.num_steps_per_epoch

    def key(self) -> str:
        """Hash everything that decides the weights in the end."""
        digest = hashlib.sha256()
        facts = (torch.__version__, self.settings, self.pairs, fingerprint_samples(self.samples), str(self.module))
        digest.update(repr(facts).encode())
        for network in (self.module, self.teacher):
            for tensor in network.state_dict().values() if network is not None else ():
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def steps(self, first: int) -> Iterator[tuple[int, SampleGroup]]:
        """Yield each step from `first` on with its rows."""
        for epoch in range(first // max(1, self.num_steps_per_epoch), self.settings.num_epochs):
            for number, group in enumerate(self._batches(epoch)):
                step = epoch * self.num_steps_per_epoch + number
                if step >= first:
                    yield step, group

    def learn(self, step: int, group: SampleGroup) -> float:
        """Take one step and return its loss."""
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # what dropout draws
        for options in self.optimiser.param_groups:
            options["lr"] = self.settings.learning_rate * learning_rate_factor(step, self.num_steps)
        self.optimiser.zero_grad()
        loss = self._loss(group)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return float(loss.detach())

    def _batches(self, epoch: int) -> Iterator[SampleGroup]:
        """Yield the rows of an epoch, a batch of one shape at a time, in an order that the seed decides.

        A last batch of one row is left out where there are others: normalisation cannot learn from one row.
        """
        generator = np.random.default_rng((self.settings.seed, epoch))
        batches = []
        for group in self.samples.groups:
            rows = generator.permutation(len(group))
            parts = [rows[at : at + self.settings.batch_size] for at in range(0, len(rows), self.settings.batch_size)]
            batches += [(group, part) for part in parts if len(part) > 1 or len(parts) == 1]
        for index in generator.permutation(len(batches)):
            group, part = batches[index]
            yield group.take(np.sort(part))

    def _loss(self, group: SampleGroup) -> Tensor:
        with _recorded(self.module, [ours for _, ours in self.pairs]) as ours_hidden:
            ours = list(named_outputs(self.module(**given(group.inputs))).values())
        terms = []
        weight = self.settings.label_weight if self.teacher is not None else 1.0
        if group.labels is not None and weight:
            terms.append(weight * _label_loss(ours[0], torch.tensor(group.labels)))
        if self.teacher is not None:
            with torch.no_grad(), _recorded(self.teacher, [theirs for theirs, _ in self.pairs]) as theirs_hidden:
                theirs = list(named_outputs(self.teacher(**given(group.inputs))).values())
            share = 1 - weight if terms else 1.0
            temperature = self.settings.temperature if are_classes(theirs[0], group) else None
            terms.append(share * _teacher_loss(ours, theirs, temperature))
            terms.append(self._hidden_loss(ours_hidden, theirs_hidden))
        return torch.stack(terms).sum()

    def _hidden_loss(self, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
        if not self.pairs:
            return torch.zeros(())
        losses = [
            _relative_square(self._projected(number, ours[mine]), theirs[other])
            for number, (other, mine) in enumerate(self.pairs)
        ]
        return self.settings.hidden_weight * torch.stack(losses).mean()

    def _projected(self, number: int, hidden: Tensor) -> Tensor:
        projection: nn.Module = self.projections[number]
        if isinstance(projection, nn.Linear) and hidden.ndim == 4:
            return projection(hidden.movedim(1, -1)).movedim(-1, 1)
        return projection(hidden)

    def _projections(self) -> nn.ModuleList:
        """Make a map for each pair of layers: nothing where the widths agree, one matrix where they do not."""
        if self.teacher is None or not self.pairs:
            return nn.ModuleList()
        inputs = self.samples.groups[0].take(slice(0, 2)).inputs
        shapes = []
        for network, names in (
            (self.teacher, [it for it, _ in self.pairs]),
            (self.module, [it for _, it in self.pairs]),
        ):
            with torch.no_grad(), _recorded(network.eval(), names) as hidden:
                network(**given(inputs))
            shapes.append([hidden[name].shape for name in names])
        self.module.train()
        maps = []
        for theirs, ours in zip(*shapes, strict=True):
            axis = 1 if len(ours) == 4 else -1
            maps.append(nn.Identity() if ours == theirs else nn.Linear(ours[axis], theirs[axis], bias=False))
        return nn.ModuleList(maps)


def _run(lesson: _Lesson, settings: TrainSettings, checkpoint: Path | None, progress: Progress) -> Training:
    key = lesson.key() if checkpoint else ""
    networks = {"module": lesson.module, "projections": lesson.projections}
    first = load_checkpoint(checkpoint, key, networks, lesson.optimiser) if checkpoint else 0
    started = saved = time.monotonic()
    loss = float("nan")
    recent: list[float] = []
    for step, group in lesson.steps(first):
        loss = lesson.learn(step, group)
        recent = [*recent[-49:], loss]
        now = time.monotonic()
        left_s = (now - started) / (step + 1 - first) * (lesson.num_steps - step - 1)
        progress(_words(step, lesson, float(np.mean(recent)), left_s), done=(step + 1) / lesson.num_steps)
        if checkpoint and (now - saved > settings.checkpoint_s or step + 1 == lesson.num_steps):
            save_checkpoint(checkpoint, key, step + 1, networks, lesson.optimiser)
            saved = now
    lesson.module.eval()
    return Training(num_steps=lesson.num_steps, num_resumed=first, loss=loss)


def _words(step: int, lesson: _Lesson, loss: float, left_s: float) -> str:
    epoch = step // lesson.num_steps_per_epoch + 1
    return f"training, epoch {epoch} of {lesson.settings.num_epochs}, loss {loss:.3g}, {left_s:.0f} s left"


def are_classes(output: Tensor, group: SampleGroup) -> bool:
    """Tell whether an output holds the scores of classes; without integer labels nothing says so."""
    return group.labels is not None and group.labels.dtype.kind in "iub" and group.labels.ndim == 1 and output.ndim == 2


def _label_loss(output: Tensor, labels: Tensor) -> Tensor:
    if not labels.is_floating_point() and labels.ndim == 1 and output.ndim == 2 and output.shape[1] > 1:
        return functional.cross_entropy(output, labels.long())
    if output.numel() != labels.numel():
        reason = f"its first output has shape {list(output.shape)}, the labels {list(labels.shape)}"
        hint = "Give integer classes for scores, or labels in the shape of the output."
        raise InvalidStudent(student="the network", reason=reason, hint=hint)
    return functional.mse_loss(output, labels.reshape(output.shape).to(output.dtype))


def _teacher_loss(ours: list[Tensor], theirs: list[Tensor], temperature: float | None) -> Tensor:
    """Return how far the outputs are from the teacher's: softened decisions for classes, relative squares else."""
    pairs = [(one, two) for one, two in zip(ours, theirs, strict=True) if one.is_floating_point()]
    losses = [_relative_square(one, two) for one, two in pairs]
    if temperature is not None:
        one, two = (functional.log_softmax(it / temperature, dim=-1) for it in pairs[0])
        losses[0] = functional.kl_div(one, two, reduction="batchmean", log_target=True) * temperature**2
    return torch.stack(losses).mean()


def _relative_square(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().sum() / theirs.square().sum().clamp_min(_TINY)


class _recorded:  # noqa: N801  (used like a function)
    """Keep what some layers of a module return while the block runs."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.hidden: dict[str, Tensor] = {}
        self.hooks = [module.get_submodule(name).register_forward_hook(self._hook(name)) for name in names]

    def __enter__(self) -> dict[str, Tensor]:
        return self.hidden

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            self.hidden[name] = next(iter(named_outputs(output).values()))

        return keep
