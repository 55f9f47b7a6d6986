"""Numbered migrations, plain SQL for both databases, forward only; `store/migrations.py` applies them."""
