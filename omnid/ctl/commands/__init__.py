"""The verbs of ``omnictl``: each module names in ``VERBS`` those that it has; `omnid.ctl.main.TABLE` finds them."""
