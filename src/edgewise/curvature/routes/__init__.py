"""The routes to Hessian-vector products, which all keep the contract of `HvpRoute`."""
