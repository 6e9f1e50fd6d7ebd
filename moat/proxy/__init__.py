"""The forward proxy in five words.

connection  one socket from the sandbox (or from any client)
tunnel      one CONNECT: an authority, and TLS that we terminate
exchange    one request with its response
decision    what policy says about an authority or an exchange, with the reason
injection   putting the credential on an exchange that policy allowed
"""
