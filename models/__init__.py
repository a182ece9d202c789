"""What the offline job and the service share: networks, the protected graph, the version store.

Importing this package imports no torch; `errors`, `preprocess`, `manifest`, `promotions` and `store`
are all that the service needs of it.
"""
