"""What the tests here start or import by themselves is not collected: it imports Lightning or a Trainer."""

collect_ignore = ["lightning_models.py", "trainer_ranks.py", "trainer_parts.py", "trl_parts.py", "trl_ranks.py"]
