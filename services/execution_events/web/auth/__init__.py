"""Authentication: a request's token to the caller and the namespaces that it may read.

- `access`: the token of a request, the caller behind it, the answers 401 and 503.
- `token_file`: tokens of a file, by their SHA-256.
- `issuer`: JWTs, by the keys of a JWKS.
"""
