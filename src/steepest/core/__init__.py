"""What several rooms share, and that knows no paper: checks, reductions, stable log-partition forms, the contracts."""
