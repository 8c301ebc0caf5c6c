// The 4-byte-length JSON framing, spoken by hand: what RelayClient does not let a check do (withhold an ACK, send a bad frame).
import net from 'node:net';

export const FRAME_BYTES_MAX = 1024 * 1024;

export function encode(envelope) {
  const json = typeof envelope === 'string' ? Buffer.from(envelope) : Buffer.from(JSON.stringify(envelope));
  const prefix = Buffer.alloc(4);
  prefix.writeUInt32BE(json.length);
  return Buffer.concat([prefix, json]);
}

// Cuts a stream into the JSON texts of its frames.
export class Deframer {
  #rest = Buffer.alloc(0);

  push(chunk) {
    this.#rest = Buffer.concat([this.#rest, chunk]);
    const texts = [];
    while (this.#rest.length >= 4) {
      const end = 4 + this.#rest.readUInt32BE(0);
      if (this.#rest.length < end) break;
      texts.push(this.#rest.toString('utf-8', 4, end));
      this.#rest = this.#rest.subarray(end);
    }
    return texts;
  }
}

let count = 0;
export const freshId = () => `check-${process.pid}-${++count}`;

// A connection that does only what it is told. It answers PING, so that it lives; ACKs are up to the check.
export class Plain {
  frames = [];
  closed = false;
  #waiting = [];

  constructor(socketPath) {
    const deframer = new Deframer();
    this.socket = net.createConnection(socketPath);
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.closed = true;
      this.#wake();
    });
    this.socket.on('data', (chunk) => {
      for (const text of deframer.push(chunk)) {
        const frame = JSON.parse(text);
        frame.bytes = Buffer.byteLength(text);
        if (frame.type === 'PING') this.send({ type: 'PONG', payload: frame.payload });
        this.frames.push(frame);
      }
      this.#wake();
    });
  }

  #wake() {
    for (const waiting of this.#waiting) waiting();
  }

  // Sends an envelope; returns its id.
  send(envelope) {
    const whole = { v: 1, id: freshId(), ts: Date.now(), ...envelope };
    this.socket.write(encode(whole));
    return whole.id;
  }

  message(to, body, more = {}) {
    return this.send({ type: 'SEND', to, payload: { kind: 'message', body }, ...more });
  }

  ack(deliver) {
    return this.send({ type: 'ACK', payload: { ack_id: deliver.id, seq: deliver.delivery.seq } });
  }

  hello(agent, resume_token) {
    const session = resume_token ? { resume_token } : undefined;
    const capabilities = { ack: true, resume: true, max_inflight: 256, supports_topics: true };
    this.send({ type: 'HELLO', payload: { agent, cli: 'check', capabilities, session } });
    return this.next((frame) => frame.type === 'WELCOME', 5000);
  }

  // The first frame, already here or still to come, that `wanted` accepts; undefined after `ms`.
  next(wanted, ms = 3000) {
    return new Promise((resolve) => {
      const finish = (frame) => {
        clearTimeout(timer);
        this.#waiting = this.#waiting.filter((waiting) => waiting !== look);
        resolve(frame);
      };
      const look = () => {
        const frame = this.frames.find(wanted);
        if (frame || this.closed) finish(frame);
      };
      const timer = setTimeout(() => finish(undefined), ms);
      this.#waiting.push(look);
      look();
    });
  }

  deliver(body, ms) {
    return this.next((frame) => frame.type === 'DELIVER' && frame.payload.body === body, ms);
  }

  error(ms) {
    return this.next((frame) => frame.type === 'ERROR', ms);
  }

  async gone(ms = 3000) {
    await this.next(() => false, ms);
    return this.closed;
  }

  kill() {
    this.socket.destroy();
  }

  bye() {
    this.send({ type: 'BYE', payload: {} });
    this.socket.end();
  }
}

export async function until(condition, ms = 3000) {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) return false;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return true;
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
