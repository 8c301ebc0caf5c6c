// Drives unmodified agent-relay clients (RelayClient and the command line) against a daemon; one line per check.
// Usage: node checks.mjs PACKAGE_DIRECTORY [DAEMON]   without DAEMON: against the package's own daemon, to test this script.
import fs from 'node:fs';
import path from 'node:path';
import { Daemon } from './daemon.mjs';
import { FRAME_BYTES_MAX, Plain, encode, freshId, pause, until } from './wire.mjs';

const [packageDirectory, program] = process.argv.slice(2);
const reference = !program;
const { RelayClient } = await import(path.join(packageDirectory, 'dist', 'wrapper', 'client.js'));
console.log = console.warn = console.error = () => {};
const say = (line) => process.stdout.write(`${line}\n`);
const daemon = await Daemon.start(packageDirectory, program);
const clients = [];
let failures = 0;
let count = 0;

// Each check uses names of its own, so that none depends on another.
const fresh = (name) => `${name}${++count}`;

async function check(name, act, only) {
  if (reference && only) return say(`skip ${name} (only ours)`);
  try {
    await act();
    say(`ok   ${name}`);
  } catch (problem) {
    failures += 1;
    say(`FAIL ${name}: ${problem.message}`);
  }
  for (const client of clients.splice(0)) client.destroy ? client.destroy() : client.kill();
}
const ours = (name, act) => check(name, act, true);

function must(condition, text) {
  if (!condition) throw new Error(text);
}
const same = (left, right, text) =>
  must(JSON.stringify(left) === JSON.stringify(right), `${text}: ${JSON.stringify(left)} is not ${JSON.stringify(right)}`);

async function client(name = fresh('Agent'), more = {}) {
  const made = new RelayClient({ agentName: name, socketPath: daemon.socketPath, quiet: true, ...more });
  clients.push(made);
  made.received = [];
  made.ready = 0;
  made.onStateChange = (state) => (made.ready += state === 'READY' ? 1 : 0);
  made.onMessage = (from, payload, id, meta, originalTo) => made.received.push({ from, payload, id, meta, originalTo });
  made.has = (body, ms) => until(() => made.received.some((message) => message.payload.body === body), ms);
  await made.connect();
  return made;
}

function plain() {
  const made = new Plain(daemon.socketPath);
  clients.push(made);
  return made;
}

async function welcomed(name = fresh('Plain')) {
  const made = plain();
  const welcome = await made.hello(name);
  must(welcome, 'no WELCOME');
  made.name = name;
  made.token = welcome.payload.resume_token;
  made.session = welcome.payload.session_id;
  return made;
}

await check('connect: WELCOME with session and token', async () => {
  const ann = await client();
  must(ann.currentSessionId && ann.resumeToken, 'no session id or resume token');
});

await check('direct: body, data, thread, kind and meta arrive as sent', async () => {
  const [ann, bob] = [await client(), await client()];
  const meta = { importance: 80, replyTo: 'x', own: ['kept'] };
  ann.sendMessage(bob.agentName, 'all\nof "it" \\ \u0001 🦀', 'action', { a: [1, 2.5, null], own: { deep: true } }, 'thread-1', meta);
  must(await bob.has('all\nof "it" \\ \u0001 🦀'), 'it did not arrive');
  const [got] = bob.received;
  same(got.from, ann.agentName, 'from');
  same(got.payload.data, { a: [1, 2.5, null], own: { deep: true } }, 'data');
  same([got.payload.kind, got.payload.thread], ['action', 'thread-1'], 'kind and thread');
  same(got.meta, meta, 'meta');
  same(got.originalTo, undefined, 'originalTo');
});

await check('direct: to oneself', async () => {
  const ann = await client();
  ann.sendMessage(ann.agentName, 'me');
  must(await ann.has('me'), 'it did not arrive');
});

await check('direct: 500 in order, each once', async () => {
  const [ann, bob] = [await client(), await client()];
  for (let index = 0; index < 500; index++) ann.sendMessage(bob.agentName, `n${index}`);
  must(await bob.has('n499', 8000), 'they did not arrive');
  same(bob.received.map((message) => message.payload.body), Array.from({ length: 500 }, (_, index) => `n${index}`), 'order');
});

await check('broadcast: everyone but the sender, originalTo is *', async () => {
  const [ann, bob, cat] = [await client(), await client(), await client()];
  ann.broadcast('to all');
  must((await bob.has('to all')) && (await cat.has('to all')), 'it did not arrive');
  same(bob.received[0].originalTo, '*', 'originalTo');
  must(!(await ann.has('to all', 200)), 'the sender got it too');
});

const publish = (from, topic, body) =>
  from.send({ v: 1, type: 'SEND', id: freshId(), ts: Date.now(), to: '*', topic, payload: { kind: 'message', body } });

await check('topic: subscribers only, until they unsubscribe', async () => {
  const [ann, bob, cat] = [await client(), await client(), await client()];
  const topic = fresh('topic');
  bob.subscribe(topic);
  await pause(150);
  publish(ann, topic, 'green');
  must(await bob.has('green'), 'the subscriber did not get it');
  must(!(await cat.has('green', 200)), 'a stranger got it');
  bob.unsubscribe(topic);
  await pause(150);
  publish(ann, topic, 'red');
  must(!(await bob.has('red', 300)), 'it came after UNSUBSCRIBE');
});

await check('channels: members only, with thread and mentions, no echo, until they leave', async () => {
  const [ann, bob, cat] = [await client(), await client(), await client()];
  const channel = `#${fresh('Channel')}`;
  const channels = [];
  bob.onChannelMessage = (from, name, body, envelope) => channels.push([from, name, body, envelope.payload.mentions]);
  ann.joinChannel(channel);
  bob.joinChannel(channel);
  await pause(150);
  ann.sendChannelMessage(channel, 'green', { thread: 't', mentions: ['x'], data: { k: 1 } });
  must(await bob.has('green'), 'the member did not get it');
  same(channels, [[ann.agentName, channel, 'green', ['x']]], 'onChannelMessage');
  same([bob.received[0].payload.thread, bob.received[0].originalTo], ['t', channel], 'thread and channel');
  must(!(await ann.has('green', 200)) && !(await cat.has('green', 10)), 'the sender or a stranger got it');
  bob.leaveChannel(channel, 'done');
  await pause(150);
  ann.sendChannelMessage(channel, 'red');
  must(!(await bob.has('red', 300)), 'it came after leaving');
});

await check('channels: everyone is in #general', async () => {
  const [ann, bob] = [await client(), await client()];
  await pause(100);
  ann.sendChannelMessage('#general', 'welcome all');
  must(await bob.has('welcome all'), 'it did not arrive');
});

await check('channels: dm between two', async () => {
  const [ann, bob, cat] = [await client(), await client(), await client()];
  const channel = `dm:${[ann.agentName, bob.agentName].sort().join(':')}`;
  ann.joinChannel(channel);
  bob.joinChannel(channel);
  await pause(150);
  ann.sendChannelMessage(channel, 'you and I');
  must(await bob.has('you and I'), 'it did not arrive');
  same(bob.received[0].originalTo, channel, 'channel');
  must(!(await cat.has('you and I', 200)), 'a stranger got it');
});

await check('channels: what is not acknowledged (channel messages never are) is not sent twice', async () => {
  const [ann, bob] = [await client(), await welcomed()];
  await pause(100);
  ann.sendChannelMessage('#general', 'once, please');
  await pause(6500);
  const seen = bob.frames.filter((frame) => frame.payload?.body === 'once, please');
  same(seen.map((frame) => frame.type), ['CHANNEL_MESSAGE'], 'frames');
});

await ours('channels: the daemon\'s own user may join and remove others', async () => {
  const [ann, bob] = [await welcomed(), await client()];
  const [channel, member] = ['#joined-by-another', bob.agentName];
  ann.send({ type: 'CHANNEL_JOIN', payload: { channel, member } });
  await pause(150);
  ann.send({ type: 'CHANNEL_MESSAGE', payload: { channel, body: 'you are in' } });
  must(await bob.has('you are in'), 'it did not arrive');
  ann.send({ type: 'CHANNEL_LEAVE', payload: { channel, member } });
  await pause(150);
  ann.send({ type: 'CHANNEL_MESSAGE', payload: { channel, body: 'you are out' } });
  must(!(await bob.has('you are out', 300)), 'it came after leaving');
});

await check('retry: unacknowledged comes again within 6 s with the same id, and stops when acknowledged', async () => {
  const [ann, deaf] = [await client(), await welcomed()];
  ann.sendMessage(deaf.name, 'do you hear me');
  const copies = () => deaf.frames.filter((frame) => frame.type === 'DELIVER');
  must(await until(() => copies().length === 2, 6500), 'it was not sent again');
  same(copies()[1].id, copies()[0].id, 'id');
  same(copies()[1].payload, copies()[0].payload, 'payload');
  deaf.ack(copies()[0]);
  await pause(6500);
  same(copies().length, 2, 'copies after ACK');
});

await check('resume: the socket dies, the session goes on, what was unacknowledged comes first', async () => {
  const [ann, roamer] = [await client(), await welcomed()];
  ann.sendMessage(roamer.name, 'before');
  const first = await roamer.deliver('before');
  must(first, 'it did not arrive');
  roamer.kill();
  await pause(300);
  ann.sendMessage(roamer.name, 'while away');
  await pause(300);
  const again = plain();
  const welcome = await again.hello(roamer.name, roamer.token);
  same(welcome?.payload.session_id, roamer.session, 'session');
  must(await again.deliver('while away'), 'what was sent meanwhile did not come');
  const delivered = again.frames.filter((frame) => frame.type === 'DELIVER');
  same(delivered.map((frame) => frame.payload.body), ['before', 'while away'], 'order');
  same(delivered[0].id, first.id, 'id of the replay');
  must(!again.frames.some((frame) => frame.type === 'ERROR'), 'an ERROR came');
});

await check('resume: an unknown token gets RESUME_TOO_OLD and a new session', async () => {
  const roamer = plain();
  const welcome = await roamer.hello(fresh('Plain'), '00000000-0000-4000-8000-000000000000');
  const error = await roamer.error();
  same([error?.payload.code, error?.payload.fatal, Boolean(welcome)], ['RESUME_TOO_OLD', false, true], 'answer');
});

await check('reconnect: RelayClient comes back by itself with its session and gets messages', async () => {
  const [ann, bob] = [await client(), await client()];
  const session = bob.currentSessionId;
  bob.socket.destroy();
  must(await until(() => bob.ready === 2, 5000), 'it did not come back');
  same(bob.currentSessionId, session, 'session');
  ann.sendMessage(bob.agentName, 'back?');
  must(await bob.has('back?'), 'no message after coming back');
});

await check('reconnect: disconnect() of 1.6.0, whose BYE comes in front of its next HELLO, is survived', async () => {
  const [ann, bob] = [await client(), await client()];
  bob.disconnect();
  must(await until(() => bob.ready >= 2, 5000), 'it did not come back');
  await pause(500);
  ann.sendMessage(bob.agentName, 'still there?');
  must(await bob.has('still there?'), 'no message after coming back');
});

await check('away: a known agent gets on return what was sent meanwhile', async () => {
  const [ann, bob] = [await client(), await welcomed()];
  bob.bye();
  must(await bob.gone(), 'BYE did not end the connection');
  ann.sendMessage(bob.name, 'for later');
  await pause(300);
  const again = plain();
  await again.hello(bob.name);
  must(await again.deliver('for later'), 'it did not come');
});

await ours('unknown: NOT_FOUND after about 2 s, with the id of the SEND', async () => {
  const ann = await welcomed();
  const start = Date.now();
  const id = ann.message(fresh('Nobody'), 'lost');
  const error = await ann.error(5000);
  same([error?.payload.code, error?.payload.fatal, error?.payload.replyTo], ['NOT_FOUND', false, id], 'answer');
  must(Date.now() - start > 1500 && Date.now() - start < 4000, `after ${Date.now() - start} ms`);
});

await ours('unknown: greeted before it is up', async () => {
  const [ann, name] = [await welcomed(), fresh('Late')];
  ann.message(name, 'early bird');
  await pause(700);
  const late = plain();
  await late.hello(name);
  must(await late.deliver('early bird'), 'it did not come');
  must(!ann.frames.some((frame) => frame.type === 'ERROR'), 'an ERROR came');
});

await ours('receipt: requires_ack gets an ACK with the id of the SEND', async () => {
  const [ann, bob] = [await welcomed(), await welcomed()];
  const id = ann.message(bob.name, 'sure?', { payload_meta: { requires_ack: true } });
  const ack = await ann.next((frame) => frame.type === 'ACK');
  same([ack?.payload.ack_id, ack?.payload.seq], [id, 1], 'ACK');
});

await ours('once: the same SEND twice is one message', async () => {
  const [ann, bob] = [await welcomed(), await welcomed()];
  const frame = { id: freshId(), type: 'SEND', to: bob.name, payload: { kind: 'message', body: 'twice' } };
  ann.send(frame);
  ann.send(frame);
  ann.message(bob.name, 'last');
  must(await bob.deliver('last'), 'nothing arrived');
  same(bob.frames.filter((frame) => frame.payload.body === 'twice').length, 1, 'copies');
});

await ours('1 MiB: the largest arrives, one byte more is BAD_REQUEST, nobody dies', async () => {
  const [ann, bob] = [await welcomed(), await welcomed()];
  const accepted = async (length) => {
    const id = ann.message(bob.name, 'x'.repeat(length));
    const arrived = bob.next((frame) => frame.type === 'DELIVER' && frame.payload.body.length === length, 8000);
    const refused = ann.next((frame) => frame.type === 'ERROR' && frame.payload.replyTo === id, 8000);
    const answer = await Promise.race([arrived, refused]);
    must(answer, `neither DELIVER nor ERROR for ${length} bytes`);
    if (answer.type === 'DELIVER') bob.ack(answer);
    else same([answer.payload.code, answer.payload.fatal], ['BAD_REQUEST', false], 'answer');
    must(answer.bytes <= FRAME_BYTES_MAX, `a frame of ${answer.bytes} bytes`);
    return answer.type === 'DELIVER';
  };
  // This much body fits a SEND of 1 MiB; somewhere below it the DELIVER does.
  let [fits, breaks] = [FRAME_BYTES_MAX - 2000, FRAME_BYTES_MAX - 150];
  must(await accepted(fits), `${fits} bytes were refused`);
  must(!(await accepted(breaks)), `${breaks} bytes were accepted`);
  while (breaks - fits > 1) {
    const middle = (fits + breaks) >> 1;
    if (await accepted(middle)) fits = middle;
    else breaks = middle;
  }
  ann.message(bob.name, 'alive');
  must(await bob.deliver('alive'), 'somebody died');
});

await check('1 MiB and a byte: the sender is closed, others live', async () => {
  const [ann, bob, cat] = [await welcomed(), await welcomed(), await client()];
  const prefix = Buffer.alloc(4);
  prefix.writeUInt32BE(FRAME_BYTES_MAX + 1);
  ann.socket.write(prefix);
  must(await ann.gone(), 'the connection stayed');
  cat.sendMessage(bob.name, 'alive');
  must(await bob.deliver('alive'), 'somebody else died');
});

await ours('two clients with one name do not flap', async () => {
  const [ann, holder] = [await client(), await client()];
  const newcomer = new RelayClient({ agentName: holder.agentName, socketPath: daemon.socketPath, quiet: true });
  clients.push(newcomer);
  let welcomes = 0;
  newcomer.onStateChange = (state) => (welcomes += state === 'READY' ? 1 : 0);
  newcomer.connect().catch(() => {});
  await pause(5000);
  same([holder.ready, welcomes], [1, 0], 'times that holder and newcomer were welcomed');
  ann.sendMessage(holder.agentName, 'still you');
  must(await holder.has('still you'), 'the holder lost its name');
});

await check('mistakes: SEND before HELLO and a second HELLO are not fatal', async () => {
  const ann = plain();
  ann.message('x', 'early');
  const error = await ann.error();
  same([error?.payload.code, error?.payload.fatal], ['BAD_REQUEST', false], 'SEND before HELLO');
  const name = fresh('Plain');
  must(await ann.hello(name), 'no WELCOME after it');
  ann.send({ type: 'HELLO', payload: { agent: name } });
  must(await ann.next((frame) => frame.type === 'ERROR' && frame !== error), 'no ERROR for the second HELLO');
  ann.message(name, 'alive');
  must(await ann.deliver('alive'), 'the connection died');
});

await ours('mistakes: a number as body, and no to, are answered and not fatal', async () => {
  const ann = await welcomed();
  for (const frame of [{ to: ann.name, payload: { body: 42 } }, { topic: 'x', payload: { body: 'b' } }]) {
    const id = ann.send({ type: 'SEND', ...frame });
    const error = await ann.next((answer) => answer.type === 'ERROR' && answer.payload.replyTo === id);
    same([error?.payload.code, error?.payload.fatal], ['BAD_REQUEST', false], 'answer');
  }
  ann.message(ann.name, 'alive');
  must(await ann.deliver('alive'), 'the connection died');
});

await ours('mistakes: bad JSON is fatal, the good frame in front of it is not lost', async () => {
  const [ann, bob] = [await welcomed(), await welcomed()];
  const good = { type: 'SEND', id: freshId(), to: bob.name, payload: { kind: 'message', body: 'good' } };
  ann.socket.write(Buffer.concat([encode(good), encode('{oops')]));
  must(await bob.deliver('good'), 'the good frame was lost');
  const error = await ann.error();
  same([error?.payload.code, error?.payload.fatal], ['BAD_REQUEST', true], 'answer');
  must(await ann.gone(), 'the connection stayed');
});

await check('frames: any JSON value is ignored, any slicing is understood', async () => {
  const ann = await welcomed();
  for (const value of ['[]', '5', '"s"', '{}', '{"type":"NEWER"}']) ann.socket.write(encode(value));
  const slow = encode({ type: 'SEND', to: ann.name, payload: { kind: 'message', body: 'slow' } });
  for (const byte of slow) {
    ann.socket.write(Buffer.of(byte));
    await new Promise(setImmediate);
  }
  must(await ann.deliver('slow'), 'it did not arrive');
});

await ours('frames: PING is answered, requests of 2.x are refused with their id', async () => {
  const ann = await welcomed();
  ann.send({ type: 'PING', payload: { nonce: 'mine' } });
  const pong = await ann.next((frame) => frame.type === 'PONG');
  same(pong?.payload.nonce, 'mine', 'nonce');
  const id = ann.send({ type: 'LIST_AGENTS', payload: {} });
  const error = await ann.error();
  same([error?.payload.code, error?.payload.fatal, error?.payload.replyTo], ['BAD_REQUEST', false, id], 'answer');
});

await check('heartbeat: a silent client is asked for a sign of life', async () => {
  const ann = await welcomed();
  const ping = await ann.next((frame) => frame.type === 'PING', 16000);
  must(typeof ping?.payload.nonce === 'string', 'no PING');
});

await check('command line: status, agents and who see the daemon and its agents', async () => {
  const ann = await client(fresh('Visible'), { cli: 'claude' });
  await pause(1200);
  const status = daemon.command('status');
  must(status.stdout.includes('Status: RUNNING'), `status: ${status.stdout}${status.stderr}`);
  const json = (result) => JSON.parse(result.stdout.slice(result.stdout.indexOf('[\n')));
  const found = json(daemon.command('agents', '--json')).find((agent) => agent.name === ann.agentName);
  same([found?.status, found?.cli], ['ONLINE', 'claude'], 'agents --json');
  const who = json(daemon.command('who', '--json')).find((agent) => agent.name === ann.agentName);
  same(who?.status, 'ONLINE', 'who --json');
  must(daemon.command('who').stdout.includes(ann.agentName), 'who');
});

await check('stop: BYE to everyone, socket and pid file are gone', async () => {
  const ann = await welcomed();
  const pid = Number(fs.readFileSync(`${daemon.socketPath}.pid`, 'utf-8'));
  same(pid, daemon.child.pid, 'pid file');
  must(await daemon.stop(), 'it did not stop within 10 s');
  must(ann.frames.some((frame) => frame.type === 'BYE'), 'no BYE');
  must(!fs.existsSync(daemon.socketPath) && !fs.existsSync(`${daemon.socketPath}.pid`), 'files were left');
});

await daemon.stop();
if (failures) say(`${failures} failed; the daemon's log: ${path.join(daemon.root, 'daemon.log')}`);
else daemon.remove();
process.exit(failures ? 1 : 0);
