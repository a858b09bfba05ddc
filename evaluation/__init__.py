"""What a finished model is measured with: metrics, and intervals that respect groups of rows."""
