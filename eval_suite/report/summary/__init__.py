"""The top of a page: what was found in at most five short lines, and what to do next."""
