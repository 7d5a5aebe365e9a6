"""`python -m examples.code_search`: the demo."""

from examples.code_search.demo import main

raise SystemExit(main())
