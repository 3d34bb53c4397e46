"""ModelHost: the models one process has loaded, shared by everybody who uses it."""

import gc
import threading
from collections import OrderedDict

from editing_core.errors import OutOfMemory
from editing_core.models.language_model import LanguageModel


class ModelHost:
    """Loads a model at first use and keeps the last few. One instance per process."""

    def __init__(self, capacity: int = 2, device: str | None = None, dtype: str = "float32") -> None:
        self.capacity, self.device, self.dtype = capacity, device, dtype
        self._loaded: OrderedDict[str, LanguageModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> LanguageModel:
        """The model of that name; loads it when needed and lets the longest unused one go."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            self._loaded.move_to_end(name)
            while len(self._loaded) > self.capacity:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def _load(self, name: str) -> LanguageModel:
        """The model, alone where there is no room for it beside the others."""
        try:
            return LanguageModel.load(name, self.device, self.dtype)
        except OutOfMemory:
            if not self._loaded:
                raise
        self._loaded.clear()
        gc.collect()
        return LanguageModel.load(name, self.device, self.dtype)

    def forked(self) -> "ModelHost":
        """One with the same models and a lock of its own, for a forked process: who held this one is not there."""
        own = ModelHost(self.capacity, self.device, self.dtype)
        own._loaded = OrderedDict(self._loaded)
        return own

    def is_loaded(self, name: str) -> bool:
        """Whether `get` would return at once."""
        return name in self._loaded
