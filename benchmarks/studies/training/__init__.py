"""How all studies train: `losses` compared at the paper's settings, `heads` over frozen features, `fit` on given pairs."""
