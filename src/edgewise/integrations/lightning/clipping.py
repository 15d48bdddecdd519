"""The moment between clipping and the update, at which Lightning calls no callback."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

_CLIPPING = "configure_gradient_clipping"


class AfterClipping:
    """Stands in a module for its `configure_gradient_clipping`, which is always called, and tells observers after it.

    A copy of the module, and one that is saved, has its own method instead.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._clip = getattr(module, _CLIPPING)
        self._is_own = _CLIPPING in vars(module)  # an attribute of this module, and no method of its class
        self._observers: list[Callable[[], None]] = []

    @classmethod
    def of(cls, module: LightningModule) -> "AfterClipping":
        """Return what stands in the module, after putting it there if need be."""
        standing = vars(module).get(_CLIPPING)
        if not isinstance(standing, cls):
            standing = cls(module)
            setattr(module, _CLIPPING, standing)
        return standing

    def tell(self, observer: Callable[[], None], *, first: bool) -> Callable[[], None]:
        """Call an observer before each update, before or after those that there are.

        Returns:
            What undoes that, and may be called again; after the last one the module has its method back.
        """
        self._observers.insert(0 if first else len(self._observers), observer)

        def undo() -> None:
            if observer in self._observers:
                self._observers.remove(observer)
                if not self._observers:
                    self._leave()

        return undo

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Clip, and tell."""
        self._clip(*args, **kwargs)
        for observer in self._observers:
            observer()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, _CLIPPING)

    def _leave(self) -> None:
        if self._is_own:
            setattr(self._module, _CLIPPING, self._clip)
        else:
            delattr(self._module, _CLIPPING)
