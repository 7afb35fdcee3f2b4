"""`heliotrope token`: makes a token and the line that lets its holder in."""

import hashlib
import secrets
import sys

BYTES = 32


def main(arguments: list[str]) -> int:
    """Prints a new token to standard output, and what to put into the access file to standard error."""
    if arguments:
        print(
            "usage: heliotrope token\n\nPrints a new token, and on standard error the line for the access file of\n"
            "`heliotrope serve --access`. The token itself is kept nowhere.",
            file=sys.stdout if arguments[0] in ("-h", "--help") else sys.stderr,
        )
        return 0 if arguments[0] in ("-h", "--help") else 2
    token = secrets.token_urlsafe(BYTES)
    print(token)
    print(f'token_sha256 = ["{hashlib.sha256(token.encode()).hexdigest()}"]', file=sys.stderr)
    return 0
