package Addr;
# Addresses as pf's tables and rules write them: parsed into a sort key (family, network bytes, prefix length) and printed in pf's form.
use strict;

# parse "addr[/bits]" -> (key, text) or (). The key orders as pf's table dump does: IPv4 before IPv6, by address, then by length.
sub parse {
    my ($s) = @_;
    require Socket;
    my ($a, $bits) = split m{/}, $s, 2;
    my ($family, $bin);
    if (index($a, ':') >= 0) {
        $family = 6;
        $bin = Socket::inet_pton(Socket::AF_INET6(), $a) // return;
    } else {
        return if $a !~ /^[0-9]+(?:\.[0-9]+){3}$/;
        $family = 4;
        $bin = Socket::inet_pton(Socket::AF_INET(), $a) // return;
    }
    my $width = length($bin) * 8;
    if (defined $bits) {
        return if $bits !~ /^[0-9]{1,3}$/ || $bits > $width;
        if ($bits < $width) {
            my $mask = pack "B$width", '1' x $bits . '0' x ($width - $bits);
            $bin &= $mask;
        }
    } else {
        $bits = $width;
    }
    my $text = Socket::inet_ntop($family == 4 ? Socket::AF_INET() : Socket::AF_INET6(), $bin);
    return ("$family$bin" . chr $bits, $bits == $width ? $text : "$text/$bits");
}

sub family { return index($_[0], ':') >= 0 ? 6 : 4 }

# true when address or network $inner lies in $outer
sub within {
    my ($inner, $outer) = @_;
    my ($ik) = parse($inner) or return 0;
    my ($ok) = parse($outer) or return 0;
    my $bits = ord substr $ok, -1;
    return 0 if substr($ik, 0, 1) ne substr($ok, 0, 1) || ord(substr $ik, -1) < $bits;
    my ($cut) = parse((split m{/}, $inner)[0] . "/$bits");
    return $cut eq $ok;
}

1;
