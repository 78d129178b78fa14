"""Model + inputs -> `Graph`: a flat list of ATen operations with shapes, modules and the parameters they read.

The only place that knows torch's dispatch internals. Open `trace.py` first, then `graph.py` for what comes out;
`runs.py` decides which runs a network needs (eval mode, and train mode for auxiliary heads).
"""
