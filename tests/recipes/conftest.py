import sys
from pathlib import Path

# The import mode of the suite leaves sys.path alone; the tests here share a module.
sys.path.insert(0, str(Path(__file__).parent))
