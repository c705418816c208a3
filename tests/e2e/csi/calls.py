"""Calls the CSI driver with gRPC's C core, as it comes from PyPI. Prints how many were answered.

    calls.py SOCKET CALLS PER_CHANNEL AT_ONCE [AUTHORITY]
"""

import sys
import threading

import grpc

socket, calls, per_channel, at_once = sys.argv[1], *map(int, sys.argv[2:5])
options = [("grpc.use_local_subchannel_pool", 1)]
if len(sys.argv) > 5:
    options.append(("grpc.default_authority", sys.argv[5]))
METHODS = ["csi.v1.Identity/GetPluginInfo", "csi.v1.Node/NodeGetCapabilities", "csi.v1.Node/NodeGetInfo"]
answered = [0] * at_once
# What the tables of HPACK are to remember, and what does not fit one frame.
FIELDS = [(), (("x-a", "v" * 100),), (("x-b", "w" * 9000),), (("x-c-bin", bytes(range(256)) * 20),)]


def call(thread):
    left = calls // at_once
    while left > 0:
        with grpc.insecure_channel("unix:" + socket, options=options) as channel:
            for number in range(min(left, per_channel)):
                method = channel.unary_unary("/" + METHODS[number % len(METHODS)])
                method(b"", timeout=60, wait_for_ready=True, metadata=FIELDS[number // 3 % len(FIELDS)])
                answered[thread] += 1
        left -= per_channel


threads = [threading.Thread(target=call, args=[thread]) for thread in range(at_once)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(answered))
