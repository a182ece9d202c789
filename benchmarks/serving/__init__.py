"""How the service is measured: parts of `benchmarks/bench_serving.py`.

client      requests over keep-alive connections, at least cost
stores      seeded, untrained graphs of two sizes, published as `detrigger protect` publishes
servers     starts and stops what is measured: Detrigger, LitServe, a plain FastAPI handler
compare     overhead against a bare loop, throughput against the others, idle latency
loads       from half to ten times the capacity, due or not, polite and rude clients
hostile     ordinary requests while one client attacks
open_loop   the clients of these two
overload    three times the capacity, for minutes
swaps       another version twenty times under load; memory over fifty
suites      tests run at length: kills, fuzzing, schemathesis
report      where results go and what stands beside every figure
"""
