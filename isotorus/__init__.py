"""What all packages share and that belongs to no subject of theirs."""
