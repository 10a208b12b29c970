// Fails on every error and warning that the AsyncAPI parser has about a document.
const { Parser } = require('@asyncapi/parser');
const fs = require('fs');

const SEVERITIES = ['error', 'warning', 'information', 'hint'];

new Parser().parse(fs.readFileSync(process.argv[2], 'utf8')).then(({ document, diagnostics }) => {
  for (const { severity, path, message } of diagnostics) {
    console.log(`${SEVERITIES[severity]}: ${path.join('/')}: ${message}`);
  }
  const failed = !document || diagnostics.some(({ severity }) => severity <= 1);
  console.log(`${process.argv[2]}: ${failed ? 'not valid' : 'OK'}`);
  process.exit(failed ? 1 : 0);
});
