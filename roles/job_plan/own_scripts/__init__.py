"""What `-e script=` asks for, read on this machine: which files are copied, with which arguments, what else they need.

Every refusal is a ValueError of one line.
"""

from .arguments import words
from .files import files_of
from .requirements import extra_packages

__all__ = ["extra_packages", "files_of", "words"]
