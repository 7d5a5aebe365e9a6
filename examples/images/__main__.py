"""`python -m examples.images`: the demo."""

from examples.images.demo import main

raise SystemExit(main())
