// Loaded before the library: its clock, which is an interval of one second, ticks SPEED times as fast.
// Nothing else is changed: the library counts its 20 and 30 seconds in ticks.
'use strict';
const speed = Number(process.env.SPEED);
const original = global.setInterval;
global.setInterval = (callback, time, ...args) =>
    original(callback, time === 1000 ? time / speed : time, ...args);
