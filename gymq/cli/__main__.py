"""`python -m gymq.cli` is `gymq`."""

from __future__ import annotations

from gymq.cli import main

if __name__ == "__main__":
    main()
