"""One experiment for each system: its publication's central claim, with the claim's numbers fixed before it runs."""
