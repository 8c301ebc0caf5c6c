// Starts a daemon (ours, or that of the npm package) on a project of its own, and stops it again.
import { spawn, spawnSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { until } from './wire.mjs';

export class Daemon {
  // `program`: path of our binary, or undefined for the package's own daemon.
  static async start(packageDirectory, program) {
    const daemon = new Daemon();
    daemon.commandLine = path.join(packageDirectory, 'dist', 'cli', 'index.js');
    daemon.root = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'relay-npm-'));
    daemon.project = path.join(daemon.root, 'project');
    fs.mkdirSync(path.join(daemon.project, '.git'), { recursive: true });
    const project = crypto.createHash('sha256').update(daemon.project).digest('hex').slice(0, 12);
    daemon.directory = path.join(daemon.root, 'data', project);
    daemon.socketPath = path.join(daemon.directory, 'relay.sock');
    const environment = Object.entries(process.env).filter(([name]) => !name.startsWith('AGENT_RELAY'));
    daemon.environment = { ...Object.fromEntries(environment), AGENT_RELAY_DATA_DIR: path.join(daemon.root, 'data') };
    const upArguments = (process.env.RELAY_UP_ARGS ?? 'up --cores 2').split(' ').filter(Boolean);
    const [command, ...parts] = program
      ? [program, ...upArguments]
      : [process.execPath, daemon.commandLine, 'up', '--no-dashboard', '--no-spawn'];
    const log = fs.openSync(path.join(daemon.root, 'daemon.log'), 'w');
    daemon.child = spawn(command, parts, {
      cwd: daemon.project,
      env: daemon.environment,
      stdio: ['ignore', log, log],
    });
    process.on('exit', () => daemon.child.kill('SIGKILL'));
    daemon.child.on('exit', () => (daemon.exited = true));
    daemon.child.on('error', () => (daemon.exited = true));
    const up = await until(() => fs.existsSync(daemon.socketPath) || daemon.exited, 15000);
    if (!up || daemon.exited) {
      throw new Error(`the daemon did not start:\n${fs.readFileSync(path.join(daemon.root, 'daemon.log'), 'utf-8')}`);
    }
    return daemon;
  }

  // Runs the npm command line in the daemon's project.
  command(...parts) {
    const options = { cwd: this.project, env: this.environment, encoding: 'utf-8', timeout: 20000 };
    return spawnSync(process.execPath, [this.commandLine, ...parts], options);
  }

  async stop() {
    if (!this.exited) this.child.kill('SIGTERM');
    const stopped = await until(() => this.exited, 10000);
    if (!stopped) this.child.kill('SIGKILL');
    return stopped;
  }

  remove() {
    fs.rmSync(this.root, { recursive: true, force: true });
  }
}
