// What both sides need to be driven by lines.
'use strict';
const readline = require('readline');

// Runs a command for each line of stdin, and ends with it.
exports.commands = known => {
    const lines = readline.createInterface({ input: process.stdin });
    lines.on('line', line => {
        const [name, ...args] = line.split(' ');
        known[name](...args);
    });
    lines.on('close', () => process.exit(0));
};

exports.large = bytes => Buffer.alloc(bytes, 'x');

// A long body that is as it should be is told by its length.
exports.show = ({ uuid, data }) => {
    const isLarge = data.length > 1000 && data.equals(exports.large(data.length));
    return `data ${uuid} ${isLarge ? `${data.length} bytes` : data}`;
};
