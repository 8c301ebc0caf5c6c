// Starts the npm daemon in its favourite case: store in memory, files on tmpfs, rate limiter off, no cloud.
// node agent-relay.mjs <node_modules/agent-relay> <data directory> <socket>
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [home, data, socketPath] = process.argv.slice(2);
process.env.AGENT_RELAY_DATA_DIR = data;
const load = (file) => import(pathToFileURL(path.join(home, 'dist', file)));
const { Daemon } = await load('daemon/server.js');
const { NoOpRateLimiter } = await load('daemon/rate-limiter.js');

const daemon = new Daemon({
  socketPath,
  pidFilePath: `${socketPath}.pid`,
  teamDir: path.join(data, 'team'),
  storageConfig: { type: 'memory' },
  cloudSync: false,
  consensus: false,
});
await daemon.start();
// The daemon makes its router itself and has no setting for this.
daemon.router.rateLimiter = new NoOpRateLimiter();
