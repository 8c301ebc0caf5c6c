"""A small client for the relay's native wire, written from docs/WIRE.md with the Python standard library alone.

    python3 relay_client.py check GOLDEN_FILE...     decode each frame, encode it again, compare
    python3 relay_client.py ADDRESS NAME echo        send each message back to its sender, until the relay says BYE
    python3 relay_client.py ADDRESS NAME say TO TEXT send one message, wait until it is accepted

ADDRESS is the path of a Unix socket, or host:port.
"""

import hashlib
import socket
import struct
import sys
import time
import zlib

# WIRE.md, "The header": magic, version, kind, flags, body length, body CRC-32, sequence (epoch, counter),
# acknowledgement (epoch, zero, counter).
HEADER = struct.Struct("<BBBBIIIQIIQ")
MAGIC, VERSION = 0xA7, 1
FRAME_BYTES_MAX = 1024 * 1024

KINDS = {
    1: "HELLO", 2: "WELCOME", 3: "SEND", 4: "DELIVER", 5: "ACK", 6: "RECEIPT", 7: "SUBSCRIBE", 8: "UNSUBSCRIBE",
    9: "PING", 10: "PONG", 11: "BUSY", 12: "ERROR", 13: "BYE", 14: "SUBMIT", 15: "QUERY", 16: "ANSWER",
}
NUMBERS = {name: number for number, name in KINDS.items()}

# WIRE.md, "Bodies": the integers of each root in order (name, struct letter), then its byte vectors in order.
MESSAGE = (
    [("sender", "Q"), ("number", "Q"), ("sent_at_ms", "Q"), ("ttl_ms", "I"), ("wants", "B"), ("kind", "B"),
     ("importance", "B"), ("flags", "B")],
    ["from", "to", "topic", "thread", "label", "text", "data", "meta", "extension"],
)
TOPIC = ([("flags", "I")], ["name", "extension"])
PING = ([], ["payload", "extension"])
BODIES = {
    "HELLO": (
        [("capabilities", "Q"), ("handled_counter", "Q"), ("handled_epoch", "I"), ("in_flight_max", "I")],
        ["name", "resume", "cli", "program", "model", "task", "working_directory", "auth_type", "credential",
         "extension"],
    ),
    "WELCOME": (
        [("agent", "Q"), ("number", "Q"), ("capabilities", "Q"), ("epoch", "I"), ("in_flight_max", "I"),
         ("frame_bytes_max", "I"), ("heartbeat_ms", "I"), ("flags", "I")],
        ["session", "resume", "server", "license", "extension"],
    ),
    "SEND": MESSAGE, "DELIVER": MESSAGE, "SUBMIT": MESSAGE,
    "RECEIPT": ([], ["records", "extension"]),
    "SUBSCRIBE": TOPIC, "UNSUBSCRIBE": TOPIC,
    "PING": PING, "PONG": PING,
    "BUSY": (
        [("number", "Q"), ("retry_after_ms", "I"), ("queue_depth", "I"), ("reason", "I")],
        ["label", "recipient", "extension"],
    ),
    "ERROR": ([("number", "Q"), ("code", "I"), ("outcome", "I"), ("flags", "I")], ["message", "label", "extension"]),
    "QUERY": ([("number", "Q"), ("kind", "I")], ["arguments", "extension"]),
    "ANSWER": ([("number", "Q"), ("flags", "I")], ["json", "extension"]),
}

RECORD = struct.Struct("<QQQIBBH")
ACCEPTED, DURABLE, DELIVERED, ACKNOWLEDGED, READ, FAILED = 1, 2, 3, 4, 5, 6
WANT_ACCEPTED = 1
CAPABILITIES = 1 | 2 | 4
NOTHING = (0, 0)
ACK_STRIDE, ACK_DELAY = 64, 0.010
PING_AFTER, DEAD_AFTER = 10.0, 30.0


class WireError(Exception):
    """The bytes are not what the document describes."""


def encode_body(kind, fields):
    """The byte vectors one after another, then the root: integers, then (relative offset, length) pairs."""
    integers, vectors = BODIES[kind]
    body, places = b"", []
    for name in vectors:
        places.append((len(body), len(fields.get(name, b""))))
        body += fields.get(name, b"")
    body += struct.pack("<" + "".join(letter for _, letter in integers), *(fields.get(name, 0) for name, _ in integers))
    for place, length in places:
        body += struct.pack("<iI", place - len(body), length)
    return body


def decode_body(kind, body):
    """The root is at the end; each pair counts from its own first byte."""
    integers, vectors = BODIES[kind]
    fixed = struct.Struct("<" + "".join(letter for _, letter in integers))
    root = len(body) - fixed.size - 8 * len(vectors)
    if root < 0:
        raise WireError(f"a {kind} body of {len(body)} bytes is too short")
    fields = dict(zip((name for name, _ in integers), fixed.unpack_from(body, root)))
    here = root + fixed.size
    for name in vectors:
        offset, length = struct.unpack_from("<iI", body, here)
        start = here + offset
        if start < 0 or start + length > root:
            raise WireError(f"{name} of {kind} lies outside the body")
        fields[name] = body[start:start + length]
        here += 8
    return fields


class Frame:
    """One frame: kind, flags, sequence and ack as (epoch, counter), and the fields of the body."""

    def __init__(self, kind, fields=None, flags=0, sequence=NOTHING, ack=NOTHING):
        self.kind, self.fields, self.flags, self.sequence, self.ack = kind, fields or {}, flags, sequence, ack

    def encode(self):
        body = encode_body(self.kind, self.fields) if self.kind in BODIES else b""
        if HEADER.size + len(body) > FRAME_BYTES_MAX:
            raise WireError("a frame is at most 1 MiB long, header included")
        header = HEADER.pack(MAGIC, VERSION, NUMBERS[self.kind], self.flags, len(body), zlib.crc32(body),
                             *self.sequence, self.ack[0], 0, self.ack[1])
        return header + body

    @staticmethod
    def decode(data):
        """The first frame of `data` and its length, or (None, 0) when more bytes are needed."""
        if len(data) < HEADER.size:
            return None, 0
        (magic, version, number, flags, length, crc, epoch, counter, ack_epoch, zero, ack_counter) = \
            HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or number not in KINDS or zero != 0:
            raise WireError("not a frame of this protocol")
        if HEADER.size + length > FRAME_BYTES_MAX:
            raise WireError("a frame is at most 1 MiB long, header included")
        if len(data) < HEADER.size + length:
            return None, 0
        body = bytes(data[HEADER.size:HEADER.size + length])
        if zlib.crc32(body) != crc:
            raise WireError("the body's checksum is wrong")
        kind = KINDS[number]
        fields = decode_body(kind, body) if kind in BODIES else {}
        return Frame(kind, fields, flags, (epoch, counter), (ack_epoch, ack_counter)), HEADER.size + length


def decode_records(records):
    """The records of a RECEIPT as (sender, number, recipient, count, state, reason)."""
    return [record[:6] for record in RECORD.iter_unpack(records)]


def number_of_label(label):
    """The number that a SUBMIT carries."""
    return int.from_bytes(hashlib.sha256(label).digest()[:8], "little") | 1 << 63


class RelayClient:
    """A session. `receive` hands out messages; each is acknowledged once the next `receive` is called."""

    def __init__(self, address, name, resume=b"", handled=NOTHING):
        self.socket = connect(address)
        self.name, self.buffer = name.encode(), bytearray()
        self.handed_out = self.handled = self.acknowledged = handled
        self.waiting, self.waiting_since = 0, None
        self.accepted = set()
        self.last_heard = self.last_said = time.monotonic()
        self._write(Frame("HELLO", {
            "capabilities": CAPABILITIES, "name": self.name, "resume": resume, "handled_epoch": handled[0],
            "handled_counter": handled[1], "program": b"relay_client.py",
        }))
        frame = self._read(10.0)
        while frame is not None and frame.kind == "ERROR" and not frame.fields["flags"] & 1:
            frame = self._read(10.0)
        if frame is None or frame.kind != "WELCOME":
            raise WireError(f"no WELCOME: {frame and frame.fields}")
        self.agent, self.number = frame.fields["agent"], frame.fields["number"]
        self.token, self.resumed = frame.fields["resume"], bool(frame.fields["flags"] & 1)

    def send(self, to, text, wants=0, **more):
        """Sends a message and returns its number; `more` are fields of the body as bytes or integers."""
        self.number += 1
        fields = {"sender": self.agent, "number": self.number, "sent_at_ms": int(time.time() * 1000), "wants": wants,
                  "importance": 50, "from": self.name, "to": to.encode(), "text": text.encode(), **more}
        self._write(Frame("SEND", fields, sequence=(0, self.number)))
        return self.number

    def subscribe(self, topic):
        self._write(Frame("SUBSCRIBE", {"name": topic.encode()}))

    def unsubscribe(self, topic):
        self._write(Frame("UNSUBSCRIBE", {"name": topic.encode()}))

    def receive(self, timeout):
        """The next DELIVER, RECEIPT, BUSY, ERROR or BYE; None when nothing came in time."""
        self.handled = self.handed_out
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            due = self.waiting and (self.waiting >= ACK_STRIDE or now >= self.waiting_since + ACK_DELAY)
            if due:
                self._acknowledge()
            if now >= self.last_said + PING_AFTER:
                self._write(Frame("PING", {"payload": b"relay_client"}))
            if now >= self.last_heard + DEAD_AFTER:
                raise ConnectionError("the relay has been silent for 30 s")
            wait = min(deadline - now, self.last_said + PING_AFTER - now)
            if self.waiting:
                wait = min(wait, self.waiting_since + ACK_DELAY - now)
            frame = self._read(max(wait, 0.0005))
            if frame is None:
                if time.monotonic() >= deadline:
                    return None
            elif frame.kind == "PING":
                self._write(Frame("PONG", {"payload": frame.fields["payload"]}))
            elif frame.kind == "DELIVER":
                if self.waiting == 0:
                    self.waiting_since = time.monotonic()
                self.waiting += 1
                # At least once on the wire, once for the program: a sequence not above the last one is a repeat.
                if frame.sequence > self.handed_out:
                    self.handed_out = frame.sequence
                    return frame
            elif frame.kind != "PONG":
                if frame.kind == "RECEIPT":
                    for _, number, _, count, state, _ in decode_records(frame.fields["records"]):
                        if state == ACCEPTED:
                            self.accepted.update(range(number, number + count))
                return frame

    def close(self):
        """Acknowledges what was handled and says BYE."""
        self.handled = self.handed_out
        self._write(Frame("BYE"))
        self.socket.close()

    def _acknowledge(self):
        self._write(Frame("ACK", sequence=self.handled))

    def _write(self, frame):
        # Whatever is sent carries the acknowledgement along.
        if frame.kind not in ("HELLO", "ACK"):
            frame.ack = getattr(self, "handled", NOTHING)
        self.waiting, self.waiting_since = 0, None
        self.last_said = time.monotonic()
        self.socket.sendall(frame.encode())

    def _read(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            frame, length = Frame.decode(self.buffer)
            if frame is not None:
                del self.buffer[:length]
                return frame
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self.socket.settimeout(remaining)
            try:
                received = self.socket.recv(65536)
            except TimeoutError:
                return None
            if not received:
                raise ConnectionError("the relay closed the connection")
            self.last_heard = time.monotonic()
            self.buffer += received


def connect(address):
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        return socket.create_connection((host.strip("[]"), int(port)), timeout=5)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.connect(address)
    return unix


def check(paths):
    """Each file holds one frame as hex with comments: it must survive decoding and encoding."""
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            golden = bytes.fromhex("".join(line.split("#")[0] for line in lines))
        frame, length = Frame.decode(golden)
        if frame is None or length != len(golden):
            raise WireError(f"{path}: not one whole frame")
        if frame.encode() != golden:
            raise WireError(f"{path}: encodes to other bytes:\n{frame.encode().hex(' ')}")
    print(f"{len(paths)} golden frames read and written")


def echo(client):
    print(f"{client.name.decode()} echoes", flush=True)
    while True:
        frame = client.receive(60.0)
        if frame is None:
            continue
        if frame.kind == "BYE":
            return
        if frame.kind == "DELIVER":
            fields = frame.fields
            client.send(fields["from"].decode(), fields["text"].decode(), thread=fields["thread"], data=fields["data"])


def say(client, to, text):
    number = client.send(to, text, wants=WANT_ACCEPTED)
    deadline = time.monotonic() + 10
    while number not in client.accepted:
        frame = client.receive(max(deadline - time.monotonic(), 0.001))
        if frame is None or frame.kind in ("BUSY", "ERROR", "BYE"):
            raise SystemExit(f"not accepted: {frame.kind + str(frame.fields) if frame else 'no answer in 10 s'}")
    client.close()


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "check":
        check(sys.argv[2:])
    elif len(sys.argv) == 4 and sys.argv[3] == "echo":
        echo(RelayClient(sys.argv[1], sys.argv[2]))
    elif len(sys.argv) == 6 and sys.argv[3] == "say":
        say(RelayClient(sys.argv[1], sys.argv[2]), sys.argv[4], sys.argv[5])
    else:
        raise SystemExit(__doc__)
