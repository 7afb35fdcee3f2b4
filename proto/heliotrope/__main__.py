"""`python -m heliotrope` is the `heliotrope` command."""

from heliotrope.command_line import main

raise SystemExit(main())
