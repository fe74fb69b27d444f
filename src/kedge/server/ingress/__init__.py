"""HTTP and WebSockets from outside to web functions: each request is one input of a call of this server's own."""
