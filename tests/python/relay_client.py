#!/usr/bin/env python3
"""A client of the relay, written from docs/WIRE.md alone, with nothing but Python's standard library.

    relay_client.py check GOLDEN...        decode frames of annotated hex, encode them again, compare
    relay_client.py ADDRESS NAME echo      send each message back to its sender
    relay_client.py ADDRESS NAME say TO TEXT

ADDRESS is the path of a Unix socket or host:port.
"""

import os
import select
import socket
import struct
import sys
import time
import zlib

MAGIC, VERSION, BODY_MAX = 0xA7, 1, 1048536
HEADER = struct.Struct("<BBBBIIIQIIQ")  # 40 bytes
PAIR = struct.Struct("<iI")  # a vector's offset (relative to the pair) and length
RECORD = struct.Struct("<QQQIBBH")  # one record of a RECEIPT

KINDS = ("HELLO WELCOME SEND DELIVER ACK RECEIPT SUBSCRIBE UNSUBSCRIBE PING PONG BUSY ERROR BYE SUBMIT QUERY "
         "ANSWER").split()
NUMBER_OF = {name: number for number, name in enumerate(KINDS, 1)}
REASONS = ("not_found recipient_full writer_full (unused) grace_full expired retention too_long rate_limited "
           "malformed lane_full stopping").split()
CODES = ("BAD_REQUEST UNAUTHORIZED FORBIDDEN QUOTA_EXCEEDED NOT_FOUND INTERNAL RESUME_TOO_OLD DUPLICATE_CONNECTION "
         "TIMEOUT").split()
ACCEPTED, FAILED = 1, 6  # states of a receipt
WANTS_ACCEPTED = 1
NO_TEXT = 1  # flag of a message
FATAL = 1  # flag of an ERROR
CUMULATIVE, RECEIPTS = 1, 2  # capabilities
ACK_MESSAGES, ACK_SECONDS = 64, 0.010  # the latest that a handled message is acknowledged
NOTHING = (0, 0)  # the sequence before everything


class Root:
    """The layout of a body: its integers in order, then its vectors in order."""

    def __init__(self, layout, integers, vectors):
        self.struct, self.integers = struct.Struct("<" + layout), integers.split()
        self.vectors = vectors.split() + ["extension"]
        self.bytes = self.struct.size + PAIR.size * len(self.vectors)


MESSAGE = Root("QQQIBBBB", "sender number sent_at_ms ttl_ms wants kind importance flags",
               "from to topic thread label text data meta")
TOPIC = Root("I", "flags", "name")
PAYLOAD = Root("", "", "payload")
ROOTS = {
    "HELLO": Root("QQII", "capabilities handled_counter handled_epoch in_flight_max",
                  "name resume cli program model task working_directory auth_type credential"),
    "WELCOME": Root("QQQIIIII", "agent number capabilities epoch in_flight_max frame_bytes_max heartbeat_ms flags",
                    "session resume server license"),
    "SEND": MESSAGE, "DELIVER": MESSAGE, "SUBMIT": MESSAGE,
    "RECEIPT": Root("", "", "records"),
    "SUBSCRIBE": TOPIC, "UNSUBSCRIBE": TOPIC,
    "PING": PAYLOAD, "PONG": PAYLOAD,
    "BUSY": Root("QIII", "number retry_after_ms queue_depth reason", "label recipient"),
    "ERROR": Root("QIII", "number code outcome flags", "message label"),
    "QUERY": Root("QI", "number kind", "arguments"),
    "ANSWER": Root("QI", "number flags", "json"),
}


class Corrupt(Exception):
    """Bytes that are not a frame."""


class Refused(Exception):
    """The relay said no."""


def name_of(names, number):
    return names[number - 1] if 1 <= number <= len(names) else str(number)


# Bodies -------------------------------------------------------------------------------------------------------------

def encode_body(kind, values):
    """The body of a frame; integers that `values` does not name are 0, vectors empty."""
    if kind not in ROOTS:
        return b""
    root, body, starts = ROOTS[kind], bytearray(), []
    vectors = [values.get(name, b"") for name in root.vectors]
    if kind == "RECEIPT":
        vectors[0] = b"".join(RECORD.pack(*record) for record in values["records"])
    for vector in vectors:
        starts.append(len(body))
        body += vector
    body += root.struct.pack(*(values.get(name, 0) for name in root.integers))
    for start, vector in zip(starts, vectors):
        body += PAIR.pack(start - len(body), len(vector))
    return bytes(body)


def decode_body(kind, body):
    if kind not in ROOTS:
        return {}  # ACK and BYE: a body that is there is ignored
    root = ROOTS[kind]
    start_of_root = len(body) - root.bytes
    if start_of_root < 0:
        raise Corrupt(f"{kind}: a body of {len(body)} bytes is shorter than its root")
    values = dict(zip(root.integers, root.struct.unpack_from(body, start_of_root)))
    pair, end_of_last = start_of_root + root.struct.size, 0
    for name in root.vectors:
        offset, length = PAIR.unpack_from(body, pair)
        start = pair + offset
        if start < end_of_last or start + length > start_of_root:
            raise Corrupt(f"{kind}: {name} is not where it belongs")
        values[name] = body[start:start + length]
        pair, end_of_last = pair + PAIR.size, start + length
    if kind == "RECEIPT":
        if len(values["records"]) % RECORD.size:
            raise Corrupt("RECEIPT: half a record")
        values["records"] = list(RECORD.iter_unpack(values["records"]))
    return values


# Frames -------------------------------------------------------------------------------------------------------------

class Frame:
    def __init__(self, kind, values=None, flags=0, sequence=NOTHING, ack=NOTHING):
        self.kind, self.values, self.flags = kind, values or {}, flags
        self.sequence, self.ack = sequence, ack

    def __getitem__(self, field):
        return self.values[field]

    def encode(self):
        body = encode_body(self.kind, self.values)
        if len(body) > BODY_MAX:
            raise ValueError("the frame would be longer than 1 MiB")
        return HEADER.pack(MAGIC, VERSION, NUMBER_OF[self.kind], self.flags, len(body), zlib.crc32(body),
                           *self.sequence, self.ack[0], 0, self.ack[1]) + body


def decode(data):
    """The first frame in `data` and its length, or (None, 0) if it is not all there yet."""
    if len(data) < HEADER.size:
        return None, 0
    (magic, version, kind, flags, length, checksum, epoch, counter, ack_epoch, zero,
     ack_counter) = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise Corrupt(f"magic {magic:#x}, version {version}")
    if not 1 <= kind <= len(KINDS):
        raise Corrupt(f"unknown kind {kind}")
    if length > BODY_MAX or zero:
        raise Corrupt("a frame too long" if length > BODY_MAX else "reserved bytes are not zero")
    end = HEADER.size + length
    if len(data) < end:
        return None, 0
    body = bytes(data[HEADER.size:end])
    if zlib.crc32(body) != checksum:
        raise Corrupt("the checksum is wrong")
    name = KINDS[kind - 1]
    return Frame(name, decode_body(name, body), flags, (epoch, counter), (ack_epoch, ack_counter)), end


# A session ----------------------------------------------------------------------------------------------------------

class Session:
    """A connection that has said HELLO and was welcomed."""

    def __init__(self, address, name):
        if "/" in address or os.path.exists(address):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            host, port = address.rsplit(":", 1)
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.setblocking(False)
        self.input, self.output, self.open = bytearray(), bytearray(), True
        self.name, self.heard, self.spoke, self.heartbeat = name.encode(), time.monotonic(), 0.0, 5.0
        self.handed = NOTHING  # the last sequence that the program got
        self.handled = NOTHING  # the last sequence that it is done with
        self.unacknowledged, self.since = 0, 0.0  # handled and not yet told, the first of them when
        self.write("HELLO", {"name": self.name, "program": b"relay_client.py",
                             "capabilities": CUMULATIVE | RECEIPTS})
        while True:
            frame = self.read()
            if frame is None or (frame.kind == "ERROR" and frame["flags"] & FATAL):
                raise Refused(describe(frame))
            if frame.kind == "WELCOME":
                break
        self.agent, self.number = frame["agent"], frame["number"]
        self.heartbeat = frame["heartbeat_ms"] / 1000 or self.heartbeat

    def write(self, kind, values=None, sequence=NOTHING):
        """Queues a frame. The acknowledgement of what is handled rides on it."""
        self.output += Frame(kind, values, 0, sequence, self.handled).encode()
        self.unacknowledged, self.spoke = 0, time.monotonic()

    def acknowledge(self, sequence):
        self.handled = max(self.handled, sequence)
        if self.unacknowledged == 0:
            self.since = time.monotonic()
        self.unacknowledged += 1
        if self.unacknowledged >= ACK_MESSAGES:
            self.flush_acknowledgement()

    def flush_acknowledgement(self):
        self.output += Frame("ACK", sequence=self.handled).encode()
        self.unacknowledged, self.spoke = 0, time.monotonic()

    def send(self, to, text, **fields):
        """Queues a message and returns its number."""
        self.number += 1
        self.send_again({"sender": self.agent, "number": self.number, "sent_at_ms": int(time.time() * 1000),
                         "wants": WANTS_ACCEPTED, "importance": 50, "from": self.name, "to": to, "text": text,
                         **fields})
        return self.number

    def send_again(self, message):
        self.last = message
        self.write("SEND", message, (0, message["number"]))

    def read(self, deadline=None):
        """The next frame that the program should see, or None at the end or at the deadline."""
        while True:
            frame, length = decode(self.input)
            if frame is None:
                if not self.turn(deadline):
                    return None
                continue
            del self.input[:length]
            if frame.kind == "PING":
                self.write("PONG", {"payload": frame["payload"]})
            elif frame.kind == "BYE":
                self.open = False
                return None
            elif frame.kind == "DELIVER" and frame.sequence <= self.handed:
                if frame.sequence <= self.handled:
                    self.acknowledge(frame.sequence)  # delivered again: drop it, but acknowledge it
            elif frame.kind != "PONG":
                if frame.kind == "DELIVER":
                    self.handed = frame.sequence
                return frame

    def turn(self, deadline=None):
        """Writes and reads what the socket takes and has; False at the end of the connection or at the deadline."""
        now = time.monotonic()
        if self.unacknowledged and now >= self.since + ACK_SECONDS:
            self.flush_acknowledgement()
        if now >= self.spoke + self.heartbeat:
            self.write("PING")
        if now >= self.heard + 30:
            self.open = False
        if not self.open or (deadline is not None and now >= deadline):
            return False
        times = [self.spoke + self.heartbeat, self.heard + 30]
        times += [self.since + ACK_SECONDS] if self.unacknowledged else []
        times += [deadline] if deadline is not None else []
        readable, writable, _ = select.select([self.socket], [self.socket] if self.output else [], [],
                                              max(0, min(times) - now))
        try:
            if writable:
                del self.output[:self.socket.send(self.output)]
            if readable:
                data = self.socket.recv(1 << 16)
                self.open, self.heard = bool(data), now
                self.input += data
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        return self.open

    def close(self):
        """Says BYE and closes, if the relay still listens."""
        if self.open:
            self.write("BYE")
            self.socket.settimeout(5)
            try:
                self.socket.sendall(self.output)
            except OSError:
                pass
        self.socket.close()


def describe(frame):
    if frame is None:
        return "the relay closed the connection"
    if frame.kind == "BUSY":
        return (f"BUSY {name_of(REASONS, frame['reason'])} {frame['recipient'].decode()}: "
                f"try again in {frame['retry_after_ms']} ms")
    outcome = f" {name_of(REASONS, frame['outcome'])}" if frame["outcome"] else ""
    return f"ERROR {name_of(CODES, frame['code'])}{outcome}: {frame['message'].decode('utf-8', 'replace')}"


def outcome_of(frame, number):
    """What a frame says of message `number`: None, "accepted" or why not."""
    if frame.kind in ("BUSY", "ERROR") and frame["number"] == number:
        return describe(frame)
    if frame.kind == "RECEIPT":
        for _, first, _, count, state, reason, _ in frame["records"]:
            if first <= number < first + count and state in (ACCEPTED, FAILED):
                return "accepted" if state == ACCEPTED else f"failed: {name_of(REASONS, reason)}"
    return None


# The commands -------------------------------------------------------------------------------------------------------

def echo(address, name):
    session = Session(address, name)
    print(f"{name} echoes", flush=True)
    pending, retries = {}, []  # messages without an outcome; those that were refused for now, and when to try again
    while True:
        frame = session.read(min(retries)[0] if retries else None)
        while retries and min(retries)[0] <= time.monotonic():
            number = retries.pop(retries.index(min(retries)))[1]
            if number in pending:
                session.send_again(pending[number])
        if frame is None:
            if session.open:
                continue  # it was time to try again
            break
        if frame.kind == "DELIVER":
            if frame["from"] == session.name:  # to oneself or to all: an echo of it would never end
                session.acknowledge(frame.sequence)
                continue
            # What is echoed is handled: the echo itself carries the acknowledgement.
            session.handled = frame.sequence
            number = session.send(frame["from"], frame["text"], thread=frame["thread"], data=frame["data"],
                                  flags=frame["flags"] & NO_TEXT)
            pending[number] = session.last
        elif frame.kind == "RECEIPT":
            for number in [number for number in pending if outcome_of(frame, number)]:
                del pending[number]
        elif frame.kind == "BUSY" and frame["number"] in pending:
            retries.append((time.monotonic() + frame["retry_after_ms"] / 1000, frame["number"]))
        elif frame.kind == "ERROR":
            print(describe(frame), file=sys.stderr)
            pending.pop(frame["number"], None)
    session.close()
    return 0


def say(address, name, to, text):
    session = Session(address, name)
    number, outcome = session.send(to.encode(), text.encode()), None
    while outcome is None:
        frame = session.read()  # what is delivered meanwhile is not handled here, so it is not acknowledged
        outcome = describe(None) if frame is None else outcome_of(frame, number)
    session.close()
    if outcome != "accepted":
        print(outcome)
    return 0 if outcome == "accepted" else 1


def check(paths):
    for path in paths:
        with open(path, encoding="utf-8") as file:
            data = bytes.fromhex(" ".join(line.split("#")[0].strip() for line in file))
        name = os.path.basename(path)
        try:
            frame, length = decode(data)
        except Corrupt as error:
            print(f"{name}: {error}")
            return 1
        again = frame.encode() if frame else b""
        if length != len(data) or again != data:
            at = next((i for i, pair in enumerate(zip(data, again)) if pair[0] != pair[1]), min(len(data), len(again)))
            print(f"{name}: differs at byte {at}: {data[at:at + 8].hex(' ')} became {again[at:at + 8].hex(' ')} "
                  f"({len(data)} bytes, {len(again)} encoded)")
            return 1
        print(f"ok {name}")
    return 0


def main(arguments):
    if len(arguments) > 1 and arguments[0] == "check":
        return check(arguments[1:])
    try:
        if len(arguments) == 3 and arguments[2] == "echo":
            return echo(*arguments[:2])
        if len(arguments) == 5 and arguments[2] == "say":
            return say(*arguments[:2], *arguments[3:])
    except (Corrupt, Refused, OSError, ValueError) as error:
        print(f"relay_client.py: {error}", file=sys.stderr)
        return 1
    print(__doc__.strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
