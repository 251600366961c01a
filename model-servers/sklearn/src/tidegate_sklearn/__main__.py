"""`python -m tidegate_sklearn`."""

from tidegate_sklearn.server import main

if __name__ == "__main__":
    raise SystemExit(main())
