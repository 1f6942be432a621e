"""Authentication: from a request's token to its caller and the namespaces they may read.

- `access`: finds the token in the headers; answers 401 and 503.
- `token_file`: tokens listed in a file, by their SHA-256.
- `issuer`: JWTs of one issuer; `key_set`: the issuer's public keys.
"""
