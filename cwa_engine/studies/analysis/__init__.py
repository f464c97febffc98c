"""What the questions of studies are answered with: units, pairs, fits and tests, each on rows alone."""
