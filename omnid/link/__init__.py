"""Links: the connections that carry commands to runners and results back."""
