"""call.py FILE RANK: calls what a pickle names, (module, name, arguments), with the rank first."""

import importlib
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
with open(sys.argv[1], "rb") as file:  # written by forked.spawn a moment ago
    module, name, arguments = pickle.load(file)
getattr(importlib.import_module(module), name)(int(sys.argv[2]), *arguments)
