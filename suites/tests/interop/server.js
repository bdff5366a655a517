// A server of the Node library that echoes, driven by lines:
//   node server.js HOST PORT [DELAY_MS]
// stdin   push UUID TEXT | stop
// stdout  started | connected | closed | exception TEXT | data UUID TEXT
'use strict';
const { Server } = require('@qtk/tcp-framework');
const { commands, show } = require('./lines');

const host = process.argv[2];
const [port, delay] = process.argv.slice(3).map(Number);
const server = new Server({ host, port });
const sockets = new Set();
server.on('started', () => console.log('started'));
server.on('connected', socket => {
    sockets.add(socket);
    console.log('connected');
});
server.on('closed', socket => {
    sockets.delete(socket);
    console.log('closed');
});
server.on('exception', (socket, error) => console.log(`exception ${error.message}`));
server.on('data', (socket, message) => {
    console.log(show(message));
    const answer = () => server.send(socket, message);
    if (delay) setTimeout(answer, delay); else answer();
});
server.start();

commands({
    push: (uuid, ...text) => {
        for (const socket of sockets) server.send(socket, { uuid, data: Buffer.from(text.join(' ')) });
    },
    stop: () => server.stop(),
});
