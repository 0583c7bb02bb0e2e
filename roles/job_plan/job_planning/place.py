"""Where this project lies on this machine."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
