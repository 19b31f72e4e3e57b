"""One reconcile a kind: observe, plan, render, apply. The queue calls them; each looks at everything anew."""
