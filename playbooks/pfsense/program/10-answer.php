<?php
/*
 * The program that the action plugin parry_pfsense pipes into /usr/local/bin/php on the firewall. Its parts (10-… to 60-…) are joined in
 * that order; the last line calls parry_main() with the run's settings and the desired entries.
 *
 * pfSense prints, calls die() and sets bare globals ($g, $config, $aliases …) wherever it likes. So: its files are included at file scope,
 * everything of ours lives in functions named parry_*, no global of ours has a name of theirs, and the answer is one line that starts with
 * "PARRY-ANSWER ", written when all that was printed before has been caught.
 */
error_reporting(E_ERROR | E_PARSE);
ini_set('display_errors', '0');         /* pfSense's php.ini turns it on */
ini_set('html_errors', '0');
ob_start();

/** What ends a run that must not go on: $code is the contract's failure code, $facts go beside it into the answer. */
final class ParryFailure extends Exception
{
    public function __construct(public readonly string $failure, string $message, public readonly array $facts = [])
    {
        parent::__construct($message);
    }
}

/** Writes the one answer; whatever pfSense printed goes along as `noise`, cut to 2000 bytes. Later calls are ignored. */
function parry_answer(array $answer): void
{
    static $answered = false;
    if ($answered) {
        return;
    }
    $answered = true;
    $noise = '';
    while (ob_get_level() > 0) {
        $noise .= ob_get_clean();
    }
    if (trim($noise) !== '') {
        $answer['noise'] = substr(trim($noise), 0, 2000);
    }
    $json = json_encode($answer, JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES);
    file_put_contents('php://stdout', "\nPARRY-ANSWER {$json}\n");
}

function parry_answer_failure(string $code, string $message, array $facts = []): void
{
    parry_answer(['failed' => true, 'msg' => $message, 'parry' => ['failure' => $code] + $facts]);
}

register_shutdown_function(function (): void {
    $error = error_get_last();
    $fatal = $error && ($error['type'] & (E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR | E_RECOVERABLE_ERROR));
    parry_answer_failure('internal', $fatal
        ? 'PHP stopped: ' . strtok($error['message'], "\n") . " ({$error['file']}:{$error['line']})"
        : "pfSense's code ended the program; see noise");
    if ($fatal) {
        exit(1);        /* PHP would end with 255, which Ansible takes for a lost connection */
    }
});

/* the path first, so that pfSense's relative includes are found wherever ssh put us */
chdir('/');
foreach (['globals.inc', 'config.inc', 'functions.inc', 'filter.inc', 'shaper.inc', 'ipsec.inc', 'vpn.inc'] as $parry_include) {
    require_once $parry_include;
}
ini_set('display_errors', '0');
error_reporting(E_ERROR | E_PARSE);
/* 100,000 entries need about 100 MB; config.inc has set its own limit, which is lower on small machines */
if (($parry_limit = parry_ini_bytes(ini_get('memory_limit'))) > 0 && $parry_limit < (512 << 20)) {
    ini_set('memory_limit', '512M');
}

/** "512M" → bytes, "-1" → -1 (ini_parse_quantity() is younger than pfSense 2.7). */
function parry_ini_bytes(string $value): int
{
    $unit = ['K' => 10, 'M' => 20, 'G' => 30][strtoupper(substr($value, -1))] ?? 0;
    return (int)$value << $unit;
}
