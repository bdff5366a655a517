// A client of the Node library, driven by lines:
//   node client.js HOST PORT
// stdin   send UUID TEXT | large UUID BYTES | close
// stdout  connected | closed | exception TEXT | data UUID TEXT | data UUID BYTES bytes
'use strict';
const { Client } = require('@qtk/tcp-framework');
const { commands, show, large } = require('./lines');

const [host, port] = process.argv.slice(2);
const client = new Client({ host, port: Number(port) });
for (const event of ['connected', 'closed']) {
    client.on(event, () => console.log(event));
}
client.on('exception', error => console.log(`exception ${error.message}`));
client.on('data', message => console.log(show(message)));

commands({
    send: (uuid, ...text) => client.send({ uuid, data: Buffer.from(text.join(' ')) }),
    large: (uuid, bytes) => client.send({ uuid, data: large(Number(bytes)) }),
    close: () => client.close(),
});
