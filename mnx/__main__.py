"""``python -m mnx`` is the command ``mnx``."""

from mnx.cli import main

if __name__ == '__main__':
    main()
