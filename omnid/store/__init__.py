"""The store: the journal, its tables and its log. Nothing outside knows SQL."""
