"""Programs of kernels on torch tensors: content restored, outputs checked, whatever makes a launch of a config.

A kernel writes into tensors among its arguments (``outputs``), or, without outputs, is judged by what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_kerneltune.backends import Program
from pytest_kerneltune.backends.guards import GuardedMemory
from pytest_kerneltune.backends.precision import matmul_precision, use_matmul_precision
from pytest_kerneltune.backends.sharing import counterparts, moved
from pytest_kerneltune.backends.tensor_arguments import Comparison
from pytest_kerneltune.backends.tensor_packing import packed
from pytest_kerneltune.backends.tensors import Snapshot, spoil, storage_bytes, tensors_in
from pytest_kerneltune.backends.writes import Watch, fills
from pytest_kerneltune.errors import KernelError
from pytest_kerneltune.packing import Reducers
from pytest_kerneltune.trial import Config


@dataclass
class _Found:
    """What a program found out in its process.

    ``expected`` is what the reference returned, ``changed`` the addresses of the inputs that every right config
    changed, ``overwrites`` whether every right config overwrites the outputs; None is not known.
    """

    expected: list[Any] = field(default_factory=list)
    first: Snapshot | None = None
    watch: Watch | None = None
    changed: frozenset[int] | None = None
    overwrites: bool | None = None
    launch: Callable[[], Any] | None = None


class TensorProgram:
    """Launches a kernel on ``arguments``, whose tensors it brings back to their first content.

    A subclass says how a config becomes a launch (``_launcher``). ``outputs`` are the tensors that the kernel writes,
    compared with what ``reference`` returns; with none, what a launch returns is compared. ``names`` are words for the
    arguments, by default their positions.

    Rules:
    1. Outputs are filled with wrong values before a launch that is checked, as long as every config overwrites them:
       else a config that writes too little would pass where they were right before.
    2. A launch that writes to memory that belongs to no argument is wrong, whatever it computed. Beyond the ends of an
       argument's storage that is only seen in a worker process, where the tensors lie between guard bytes.
    3. A kernel may change its inputs: they are restored before each launch from then on. An input that the reference
       uses may only be changed by a config if every right config before it did so. (The others are workspaces.)
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        outputs: tuple[Any, ...],
        reference: Callable[[], Any] | None,
        comparison: Comparison,
        names: Sequence[str] = (),
    ) -> None:
        self.reference, self.restores = reference, False
        self._arguments, self._outputs, self._comparison = list(arguments), outputs, comparison
        self._names = list(names) or [f"argument {i}" for i in range(len(self._arguments))]
        self._memories: Sequence[GuardedMemory] = ()
        self._used: Sequence[int] | None = None  # places of the tensors that the reference uses; None where not known
        self._found = _Found()
        self._differing: set[int] = set()  # addresses of shared storages with other first content in another program
        self._precision: str | None = None  # of single precision products; None is as this process has it

    def _launcher(self, config: Config, artifact: Any) -> Callable[[], Any]:
        """A function that launches ``config`` once; ``artifact`` is what compiling it gave."""
        raise NotImplementedError

    def prepare(self, config: Config, artifact: Any) -> Callable[[], Any]:
        self._first_content()  # taken before anything is launched
        for memory in self._memories:
            memory.fill()  # a config answers for its own launches only
        self._found.launch = self._launcher(config, artifact)
        return self._found.launch

    def reset(self) -> None:
        self._watching()  # before anything is launched
        self._first_content().restore()
        if self._found.overwrites:
            for output, expected in zip(self._outputs, self._found.expected, strict=True):
                spoil(output, expected)

    def expect(self) -> None:
        self._found.watch = None
        if self.reference is None:
            return
        self._first_content().restore()
        use_matmul_precision(self._precision)  # another version's program may be in this process, too
        found = self.reference()
        # Else a kernel would be timed on what its reference leaves behind.
        self.restores = self.restores or self._first_content().changed({_address(output) for output in self._outputs})
        values = _values(found)
        if found is None or (self._outputs and len(values) != len(self._outputs)):
            what = "None" if found is None else f"{len(values)} values"
            wanted = f" for {len(self._outputs)} output tensors" if self._outputs else ""
            raise KernelError(f"reference= returned {what}{wanted}")
        places = self._outputs or values
        self._found.expected = [_kept(v, place) for v, place in zip(values, places, strict=True)]
        if not self._outputs:
            self._comparison = replace(self._comparison, one=not isinstance(found, tuple | list))

    def mismatch(self, returned: Any) -> str | None:
        watch = self._watching()
        written = watch.written()
        if written.outside is not None:
            if written.spoilt:
                self.recover()
            return written.outside
        wrong = self._difference(returned) or self._misused(watch, written.inputs)
        self.restores = self.restores or (wrong is None and bool(written.inputs))
        return wrong

    def _difference(self, returned: Any) -> str | None:
        if not self._found.expected:
            return None
        if not self._outputs:
            return self._returned_difference(_values(returned))
        wrong = self._output_difference()
        if self._found.launch is None:
            return wrong
        if wrong is None and self._found.overwrites is None:
            self._found.overwrites = self._right_when_spoilt(self._found.launch)
            self.restores = self.restores or not self._found.overwrites
        elif wrong is not None and self._found.overwrites and self._adds(self._found.launch):
            self._found.overwrites, self.restores, wrong = False, True, None
        return wrong

    def _output_difference(self) -> str | None:
        return self._comparison.mismatch(self._outputs, self._found.expected)

    def _right_when_spoilt(self, launch: Callable[[], Any]) -> bool:
        used = self._used_storages()
        if any(_holds_integers(output) and _address(output) in used for output in self._outputs):
            return False  # a kernel in place may take other values for indices, and crash
        self._found.overwrites = True
        self.reset()
        launch()
        return self._output_difference() is None

    def _adds(self, launch: Callable[[], Any]) -> bool:
        """Whether a config that is wrong on spoilt outputs is right on their first content, and not by that alone."""
        self._first_content().restore()
        if self._output_difference() is None:
            return False
        launch()
        return self._output_difference() is None

    def _returned_difference(self, values: list[Any]) -> str | None:
        import torch

        if len(values) != len(self._found.expected):
            return f"is {len(values)} values, expected {len(self._found.expected)}"
        if any(value is None for value in values):
            return "is None, expected a tensor"
        actual = [torch.as_tensor(v, device=want.device) for v, want in zip(values, self._found.expected, strict=True)]
        wrong = self._comparison.mismatch(actual, self._found.expected)
        own = storage_bytes(self._tensors())
        for value, expected in zip(actual, self._found.expected, strict=True):
            if not own.keys() & storage_bytes([value]).keys():
                spoil(value, expected)  # the next launch may be given this memory for its output
        return wrong

    def _misused(self, watch: Watch, changed: frozenset[int]) -> str | None:
        """Why a config is wrong that computed the right output and changed the inputs at these addresses."""
        if not self._found.expected:
            return None
        before = self._found.changed
        if before is not None and (more := (changed & self._used_storages()) - before):
            names = " and ".join(sorted(map(watch.name, more)))
            return f"is right, but {names} changed, which an earlier right config leaves alone"
        self._found.changed = changed if before is None else changed & before
        return None

    def _used_storages(self) -> set[int]:
        """Addresses of the storages of arguments that the reference uses; of all of them where that is not known."""
        tensors = self._tensors()
        return {_address(tensors[i]) for i in (range(len(tensors)) if self._used is None else self._used)}

    def is_spoilt(self) -> bool:
        """Whether what is kept here was written over, by whatever was launched since ``reset`` was called first."""
        return self._found.watch is not None and self._found.watch.spoilt()

    def recover(self) -> None:
        """After a launch that wrote over what is kept here: everything anew."""
        for memory in self._memories:
            memory.reload()
        self._found.first = None
        self.expect()

    def share(self, other: Program) -> bool:
        """See ``pair.Sharing``: done where the tensors of both are alike in all but content, and lie between guards.

        What both keep of equal first content is kept once.
        """
        if not isinstance(other, TensorProgram):
            return False
        pairs = counterparts(self._tensors(), self._memories, other._tensors(), other._memories)
        first = moved(pairs, other._first_content())
        if pairs:
            self._found.first = Snapshot(self._tensors(), first)
            differing = self._first_content().differing(other._first_content())
            self._differing = other._differing = differing - (self._overwritten() & other._overwritten())
        return bool(pairs)

    @property
    def differs(self) -> bool:
        """See ``pair.Sharing``."""
        return bool(self._differing)

    def bring_back(self) -> None:
        """See ``pair.Sharing``; where both versions have nothing but an output nothing is written."""
        self._first_content().restore(self._differing)

    def _overwritten(self) -> set[int]:
        """Addresses of the storages that an output fills."""
        live = self._first_content().live
        return {_address(output) for output in self._outputs if fills(output, live[_address(output)])}

    def _first_content(self) -> Snapshot:
        if self._found.first is None:
            self._found.first = Snapshot(self._tensors())
        return self._found.first

    def _watching(self) -> Watch:
        if self._found.watch is None:
            first, memories = self._first_content(), self._memories
            self._found.watch = Watch(
                self._arguments, self._names, self._outputs, first, memories, self._found.expected
            )
        return self._found.watch

    def _tensors(self) -> list[Any]:
        return list(tensors_in(self._arguments))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": _Found(), "_precision": matmul_precision()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        import torch

        self.__dict__.update(state)
        use_matmul_precision(self._precision)  # that of the user's process: the reference is timed, too
        device = next((t.get_device() for t in self._tensors() if t.is_cuda), None)
        if device is not None:  # this is a worker: launches and timer follow the tensors
            torch.cuda.set_device(device)

    def written(self) -> Any:
        """The output tensors as the user gave them: one, a tuple, or None."""
        return (self._outputs[0] if self._outputs else None) if self._comparison.one else self._outputs

    def packed(self, by_value: Sequence[Any], reducers: Reducers) -> bytes:
        """Bytes that unpack to this program on guarded tensors; ``reducers`` are asked about objects that are none."""
        return packed(self, self._tensors(), self.reference, by_value, reducers)

    def settle(self, memories: Sequence[GuardedMemory], used: Sequence[int]) -> None:
        """In a worker: the memory behind all tensors, and the places of the arguments' tensors in the reference."""
        self._memories, self._used = memories, used

    def device(self) -> Any:
        """A context in which the tensors' device is the current one."""
        import torch

        return torch.cuda.device_of(next((t for t in self._tensors() if t.is_cuda), torch.empty(0)))


def _values(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _holds_integers(tensor: Any) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _kept(value: Any, place: Any) -> Any:
    """A copy of what the reference returned, on the device of the output ``place``; raises KernelError."""
    import torch

    try:
        return torch.as_tensor(value, device=getattr(place, "device", None)).detach().clone()
    except (TypeError, ValueError) as error:
        text = f"reference= returned a {type(value).__name__} that cannot be compared with a tensor: {error}"
        raise KernelError(text) from error
