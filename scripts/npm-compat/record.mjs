// Records what real RelayClients and the package's own daemon say to each other, as tests/transcripts/*.txt.
// Usage: node record.mjs PACKAGE_DIRECTORY OUTPUT_DIRECTORY
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { Daemon } from './daemon.mjs';
import { Deframer, Plain, freshId, pause, until } from './wire.mjs';

const [packageDirectory, output] = process.argv.slice(2);
const { RelayClient } = await import(path.join(packageDirectory, 'dist', 'wrapper', 'client.js'));
console.log = console.warn = console.error = () => {};
const daemon = await Daemon.start(packageDirectory);
const proxyPath = path.join(daemon.root, 'proxy.sock');
let lines = [];

// A repeated letter or pair is written as «text×count».
const shorten = (text) => text.replace(/(..?)\1{199,}/g, (run, unit) => `«${unit}×${run.length / unit.length}»`);
let connections = 0;
const proxy = net.createServer((client) => {
  const number = ++connections;
  const server = net.createConnection(daemon.socketPath);
  const pass = (from, to, mark) => {
    const deframer = new Deframer();
    from.on('data', (chunk) => {
      for (const text of deframer.push(chunk)) lines.push(`${number} ${mark} ${shorten(text)}`);
      to.write(chunk);
    });
    from.on('end', () => to.end());
    from.on('close', () => to.destroy());
    from.on('error', () => to.destroy());
  };
  pass(client, server, '>');
  pass(server, client, '<');
});
await new Promise((resolve) => proxy.listen(proxyPath, resolve));

async function connect(agentName, more = {}) {
  const client = new RelayClient({ agentName, socketPath: proxyPath, quiet: true, ...more });
  client.received = [];
  client.onMessage = (from, payload) => client.received.push(payload.body);
  await client.connect();
  return client;
}

async function record(name, act) {
  lines = [];
  connections = 0;
  await act();
  await pause(200);
  const about = '# agent-relay 1.6.0, client and daemon. Connection, direction (> from the client), JSON text; «ab×n» is ab, n times.';
  fs.writeFileSync(path.join(output, `${name}.txt`), [about, ...lines, ''].join('\n'));
}

const has = (client, count) => until(() => client.received.length >= count, 8000);

await record('direct', async () => {
  const ann = await connect('Ann', { cli: 'claude', program: 'claude-code', model: 'opus', task: 'tests', workingDirectory: '/src' });
  const bob = await connect('Bob', { entityType: 'user', displayName: 'Bob B.', avatarUrl: 'https://example.org/b.png' });
  ann.sendMessage('Bob', 'hi → Bob');
  await has(bob, 1);
  bob.sendMessage('Ann', 'all\nof "it" \\ \u0001 🦀', 'action', { a: [1, 2.5, null], _own: { deep: true } }, 'thread-1', {
    importance: 80,
    replyTo: 'x',
    requires_ack: true,
    ttl_ms: 60000,
    own: ['kept'],
  });
  await has(ann, 1);
  ann.sendMessage('Ann', 'to myself', 'thinking');
  ann.sendMessage('Nobody', 'lost', 'state');
  await has(ann, 2);
  ann.sendLog('working\n');
  ann.bindAsShadow('Bob', { speakOn: ['ALL_MESSAGES'] });
  ann.unbindAsShadow('Bob');
  ann.destroy();
  bob.destroy();
});

await record('broadcast_and_topic', async () => {
  const [ann, bob, cat] = [await connect('Ann'), await connect('Bob'), await connect('Cat')];
  ann.broadcast('to all', 'message', { n: 1 });
  await Promise.all([has(bob, 1), has(cat, 1)]);
  bob.subscribe('builds');
  await pause(100);
  ann.send({ v: 1, type: 'SEND', id: freshId(), ts: Date.now(), to: '*', topic: 'builds', payload: { kind: 'message', body: 'green' } });
  await has(bob, 2);
  ann.send({ v: 1, type: 'SEND', id: freshId(), ts: Date.now(), to: 'Cat', topic: 'builds', payload: { kind: 'message', body: 'aside' } });
  await has(cat, 2);
  bob.unsubscribe('builds');
  for (const client of [ann, bob, cat]) client.destroy();
});

await record('channels', async () => {
  const [ann, bob] = [await connect('Ann'), await connect('Bob')];
  ann.joinChannel('#Builds', 'Ann A.');
  bob.joinChannel('#Builds');
  await pause(100);
  ann.sendChannelMessage('#Builds', 'green', { thread: 't', mentions: ['Bob'], attachments: [{ id: 'f' }], data: { k: 1 } });
  await has(bob, 1);
  ann.sendChannelMessage('#general', 'everyone is here');
  await has(bob, 2);
  ann.joinChannel('dm:Ann:Bob');
  bob.joinChannel('dm:Ann:Bob');
  await pause(100);
  bob.sendChannelMessage('dm:Ann:Bob', 'you and I');
  await has(ann, 1);
  ann.adminJoinChannel('#ops', 'Bob');
  ann.adminRemoveMember('#ops', 'Bob');
  bob.leaveChannel('#Builds', 'done');
  await pause(100);
  ann.destroy();
  bob.destroy();
});

await record('retry', async () => {
  const ann = await connect('Ann');
  const deaf = new Plain(proxyPath);
  await deaf.hello('Deaf');
  ann.sendMessage('Deaf', 'do you hear me');
  await until(() => deaf.frames.filter((frame) => frame.type === 'DELIVER').length === 2, 8000);
  deaf.ack(deaf.frames.find((frame) => frame.type === 'DELIVER'));
  await pause(100);
  deaf.bye();
  ann.destroy();
});

await record('resume', async () => {
  const ann = await connect('Ann');
  const first = new Plain(proxyPath);
  const welcome = await first.hello('Roamer');
  ann.sendMessage('Roamer', 'before', 'message', { x: 1 }, undefined, { importance: 60 });
  await first.deliver('before');
  first.kill();
  await pause(300);
  ann.sendMessage('Roamer', 'while away');
  await pause(300);
  const second = new Plain(proxyPath);
  await second.hello('Roamer', welcome.payload.resume_token);
  second.ack(await second.deliver('before'));
  second.ack(await second.deliver('while away'));
  await pause(100);
  second.kill();
  const third = new Plain(proxyPath);
  await third.hello('Roamer', '00000000-0000-4000-8000-000000000000');
  third.bye();
  const bob = await connect('Bob');
  bob.socket.destroy();
  await until(() => bob.state === 'BACKOFF', 2000);
  await until(() => bob.state === 'READY', 5000);
  bob.destroy();
  ann.destroy();
});

// disconnect() of 1.6.0 ends its socket before the queued BYE is written, and then reconnects: no BYE ever comes from it.
await record('disconnect', async () => {
  const ann = await connect('Ann');
  ann.disconnect();
  await until(() => ann.state === 'READY', 5000);
  ann.destroy();
});

await record('large', async () => {
  const [ann, bob] = [await connect('Ann'), await connect('Bob')];
  ann.sendMessage('Bob', 'x'.repeat(1048000));
  await has(bob, 1);
  ann.sendMessage('Bob', '"'.repeat(500000));
  await has(bob, 2);
  ann.destroy();
  bob.destroy();
});

await record('mistakes', async () => {
  const plain = new Plain(proxyPath);
  plain.message('Bob', 'too early');
  await plain.hello('Erring');
  plain.send({ type: 'HELLO', payload: { agent: 'Erring' } });
  plain.send({ type: 'PING', payload: { nonce: 'mine' } });
  plain.send({ type: 'STATUS', payload: {} });
  plain.send({ type: 'SEND', topic: 'nowhere', payload: { kind: 'message', body: 'no to' } });
  plain.message('Erring', null);
  await plain.next((frame) => frame.type === 'DELIVER');
  await plain.next((frame) => frame.type === 'PING', 7000);
  plain.send({ type: 'ACK', payload: {} });
  plain.message('Erring', 42);
  await pause(300);
  plain.kill();
});

await daemon.stop();
daemon.remove();
proxy.close();
process.exit(0);
