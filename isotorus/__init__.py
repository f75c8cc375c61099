"""Small tools that all packages share: errors, secrets, files, processes, random numbers, configuration."""
