package Rules;
# Reads a ruleset in pf.conf's syntax, as far as pfSense writes it, and gives back what pf would hold: rules in the form that pfctl -sr
# prints, translations, table definitions, limits. Errors are pfctl's: "FILE:LINE: text".
use strict;
use Addr;
use Tables;

my %proto = map { $_ => 1 } qw(icmp igmp ipencap tcp udp rdp ipv6 gre esp ah ipv6-icmp icmp6 eigrp ospf pim carp pfsync sctp l2tp vrrp);
my %with_ports = map { $_ => 1 } qw(tcp udp sctp);
my %option = map { $_ => 1 }
  qw(optimization timeout skip keepcounters loginterface hostid state-policy block-policy ruleset-optimization debug syncookies
  require-order fingerprints);
my %flag_letters = map { $_ => 1 } split //, 'FSRPAUEW';

sub new {
    my ($class, $file) = @_;
    my %self = (file => $file, line => 0, errors => [], macros => {}, tables => {}, used => {}, rules => [], nat => [], limits => {});
    return bless \%self, $class;
}

sub fail { my ($self, $text) = @_; die { text => "$self->{file}:$self->{line}: $text\n" } }

sub parse {
    my ($self, $text) = @_;
    my @lines = split /\n/, $text, -1;
    for (my $i = 0; $i < @lines; $i++) {
        my $line = $lines[$i];
        $self->{line} = $i + 1;
        while ($line =~ s/\\$// && $i + 1 < @lines) { $line .= ' ' . $lines[++$i] }
        next if $line =~ /^\s*(?:#.*)?$/;
        eval { $self->statement($line); 1 } and next;
        die $@ unless ref $@;
        push @{ $self->{errors} }, $@->{text};
    }
    return !@{ $self->{errors} };
}

# cut a line into tokens; "$name" is replaced by its macro's tokens
sub tokens {
    my ($self, $line) = @_;
    my @t;
    while ($line =~ /\G\s*(?:
            ("(?:\\.|[^"\\])*")                                 # a string
          | (<[A-Za-z_][\w.-]*>)                                # a table
          | (>=|<=|><|<>|!=|->|[{}(),!=<>])                     # punctuation
          | \$([A-Za-z_]\w*)                                    # a macro
          | (\#.*)                                              # a comment
          | ([^\s{}(),!=<>"]+)                                  # a word
        )/gcx) {
        if (defined $4) {
            my $value = $self->{macros}{$4} // $self->fail("macro '$4' not defined");
            push @t, $self->tokens($value);
        } elsif (!defined $5) {
            push @t, grep { defined } $1, $2, $3, $6;
        }
    }
    $self->fail('syntax error') if substr($line, pos($line) // 0) =~ /\S/;
    return @t;
}

sub statement {
    my ($self, $line) = @_;
    if ($line =~ /^\s*([A-Za-z_]\w*)\s*=\s*(.*?)\s*$/) {
        my ($name, $value) = ($1, $2);
        $value =~ s/^"(.*)"$/$1/ or $value =~ /^[\w.:\/-]+$/ or $self->fail('syntax error');
        $self->{macros}{$name} = $value;
        return;
    }
    my @t = $self->tokens($line);
    my $word = $t[0];
    return $self->option(@t[1 .. $#t]) if $word eq 'set';
    return $self->table(@t[1 .. $#t]) if $word eq 'table';
    return $self->translation(@t) if $word =~ /^(?:nat|rdr|binat|no|nat-anchor|rdr-anchor|binat-anchor)$/;
    return $self->rule(@t) if $word =~ /^(?:pass|block|match|scrub|anchor|antispoof)$/;
    return push @{ $self->{rules} }, [ join ' ', @t ] if $word =~ /^(?:load|ether|altq|queue)$/;
    $self->fail('syntax error');
}

sub option {
    my ($self, $what, @t) = @_;
    if (($what // '') eq 'limit') {
        my ($name, $n) = @t;
        $self->fail("unable to set limit") unless defined $n && $name =~ /^(?:states|src-nodes|frags|table-entries|tables)$/ && $n =~ /^\d+$/;
        $self->{limits}{$name} = $n;
        return;
    }
    $self->fail('syntax error') unless $option{ $what // '' };
}

sub table {
    my ($self, $name, @t) = @_;
    $self->fail('syntax error') unless defined $name && $name =~ s/^<(.*)>$/$1/;
    $self->fail('table name too long, max 31 chars') if length $name > 31;
    my %set;
    my $persist = 0;
    my $init = 0;
    while (@t) {
        my $w = shift @t;
        if ($w eq 'persist') { $persist = 1 }
        elsif ($w eq 'const' || $w eq 'counters') { }
        elsif ($w eq 'file') {
            my $file = shift(@t) // '';
            $self->fail('syntax error') unless $file =~ s/^"(.*)"$/$1/;
            open my $f, '<', $file or $self->fail("cannot load \"$file\": $!");
            local $/;
            my ($got, $bad) = Tables::parse(scalar(<$f>) // '');
            if (defined $bad) {
                push @{ $self->{errors} }, "no IP address found for $bad\n";
                $self->fail("file \"$file\" contains bad data");
            }
            @set{ keys %$got } = values %$got;
            $init = 1;
        } elsif ($w eq '{') {
            my @body;
            while (@t && $t[0] ne '}') { push @body, shift @t }
            $self->fail('syntax error') unless @t;
            shift @t;
            my $text = join ' ', grep { $_ ne ',' } @body;
            $text =~ s/! /!/g;
            my ($got, $bad) = Tables::parse($text);
            if (defined $bad) {
                push @{ $self->{errors} }, "no IP address found for $bad\n";
                $self->fail("could not parse host specification");
            }
            @set{ keys %$got } = values %$got;
            $init = 1;
        } else {
            $self->fail('syntax error');
        }
    }
    $self->{tables}{$name} = { set => \%set, persist => $persist, init => $init, line => $self->{line} };
}

# nat, rdr, binat: kept as text with the macros filled in; tables are noted as used
sub translation {
    my ($self, @t) = @_;
    for my $w (@t) { $self->{used}{$1} = 1 if $w =~ /^<(.*)>$/ }
    push @{ $self->{nat} }, join ' ', @t;
}

# a list "{ a, b }" or a single item, taken off @$t
sub list {
    my ($self, $t) = @_;
    $self->fail('syntax error') unless @$t;
    return (shift @$t) if $t->[0] ne '{';
    shift @$t;
    my @items;
    while (@$t && $t->[0] ne '}') {
        my $w = shift @$t;
        push @items, $w if $w ne ',';
    }
    $self->fail('syntax error') unless @$t && @items;
    shift @$t;
    return @items;
}

# "( ... )" as it is
sub parens {
    my ($self, $t) = @_;
    my @in;
    shift @$t;
    while (@$t && $t->[0] ne ')') { push @in, shift @$t }
    $self->fail('syntax error') unless @$t;
    shift @$t;
    return join ' ', @in;
}

# one end of "from X port P to Y port P" -> ([hosts], [ports])
sub end {
    my ($self, $t) = @_;
    my @hosts;
    my $one = sub {
        my ($t) = @_;
        my $not = '';
        if (@$t && $t->[0] eq '!') { $not = '! '; shift @$t }
        $self->fail('syntax error') unless @$t;
        if ($t->[0] eq '(') { return { text => $not . '(' . $self->parens($t) . ')' } }
        my $w = shift @$t;
        if ($w =~ /^<(.*)>$/) {
            $self->fail('table name too long, max 31 chars') if length $1 > 31;
            $self->{used}{$1} = 1;
            return { text => "$not$w" };
        }
        return { text => 'any' } if $w eq 'any';
        return { text => "$not$w" } if $w =~ /^(?:self|urpf-failed|no-route)$/ || $w =~ /^[a-z]+\d+(?:[._]\w+)*(?::\w+)*$/;
        if ($w =~ s/^!//) { $not = '! ' }
        my ($key, $text) = Addr::parse($w);
        if (!defined $key) {
            push @{ $self->{errors} }, "no IP address found for $w\n";
            $self->fail('could not parse host specification');
        }
        return { text => "$not$text", af => substr($key, 0, 1) eq '4' ? 'inet' : 'inet6' };
    };
    if (@$t && $t->[0] eq '{') {
        shift @$t;
        while (@$t && $t->[0] ne '}') {
            if ($t->[0] eq ',') { shift @$t; next }
            push @hosts, $one->($t);
        }
        $self->fail('syntax error') unless @$t && @hosts;
        shift @$t;
    } else {
        push @hosts, $one->($t);
    }
    my @ports = (undef);
    if (@$t && $t->[0] eq 'port') {
        shift @$t;
        my @items;
        if (@$t && $t->[0] eq '{') { @items = map { "= $_" } $self->list($t) }
        elsif (@$t > 1 && $t->[0] =~ /^(?:=|!=|<|>|<=|>=)$/) { @items = ($t->[0] . ' ' . $t->[1]); splice @$t, 0, 2 }
        elsif (@$t > 2 && $t->[1] =~ /^(?:><|<>)$/) { @items = ("$t->[0] $t->[1] $t->[2]"); splice @$t, 0, 3 }
        elsif (@$t) { @items = ('= ' . shift @$t) }
        else { $self->fail('syntax error') }
        for my $p (@items) {
            $p =~ s/^= (\w+):(\w+)$/$1:$2/;
            for my $n ($p =~ /[\w-]+/g) {
                next if $n =~ /^\d+$/ && $n <= 65535;
                my $service = $n =~ /^\d/ ? undef : (getservbyname($n, 'tcp'))[2];
                $self->fail("unknown port $n") unless defined $service;
                $p =~ s/\b\Q$n\E\b/$service/;
            }
        }
        @ports = @items;
    }
    return (\@hosts, \@ports);
}

sub rule {
    my ($self, @t) = @_;
    my $action = shift @t;
    my %r = (head => $action, labels => [], opts => []);
    my @ifs = ('');
    my @protos = ('');
    my ($src, $sport, $dst, $dport) = ([ { text => 'any' } ], [undef], [ { text => 'any' } ], [undef]);
    my $t = \@t;
    if ($action eq 'block') {
        my $how = 'drop';
        if (@t && $t[0] =~ /^(?:drop|return|return-rst|return-icmp|return-icmp6)$/) {
            $how = shift @t;
            $how .= '(' . $self->parens($t) . ')' if @t && $t[0] eq '(';
        }
        $r{head} = "block $how";
    } elsif ($action eq 'anchor') {
        $self->fail('syntax error') unless @t;
        $r{head} = 'anchor ' . shift @t;
    } elsif ($action eq 'antispoof') {
        return $self->antispoof(@t);
    }
    while (@t) {
        my $w = shift @t;
        if ($action eq 'scrub' && $w =~ /^(?:no|fragment|reassemble|no-df|random-id)$/) { push @{ $r{opts} }, $w }
        elsif ($w =~ /^(?:in|out)$/) { $r{dir} = $w }
        elsif ($w eq 'log') { $r{log} = 1; $self->parens($t) if @t && $t[0] eq '(' }
        elsif ($w eq 'quick') { $r{quick} = 1 }
        elsif ($w eq 'on') {
            my $not = @t && $t[0] eq '!' ? shift(@t) . ' ' : '';
            @ifs = map { "$not$_" } $self->list($t);
        } elsif ($w =~ /^(?:inet|inet6)$/) { $r{af} = $w }
        elsif ($w eq 'proto') {
            @protos = map { $_ eq 'icmp6' ? 'ipv6-icmp' : $_ } $self->list($t);
            for my $p (@protos) { $self->fail("unknown protocol $p") unless $proto{$p} || $p =~ /^\d{1,3}$/ && $p < 256 }
        } elsif ($w =~ /^(?:reply-to|route-to|dup-to)$/) {
            $self->fail('syntax error') unless @t && $t[0] eq '(';
            $r{route} = "$w (" . $self->parens($t) . ')';
        } elsif ($w eq 'from') { ($src, $sport) = $self->end($t) }
        elsif ($w eq 'to') { ($dst, $dport) = $self->end($t) }
        elsif ($w eq 'all') { }
        elsif ($w eq 'os') { shift @t }
        elsif ($w eq 'flags') {
            my $f = shift(@t) // $self->fail('syntax error');
            if ($f ne 'any') {
                my ($set, $mask) = split m{/}, $f, 2;
                $self->fail('syntax error') unless defined $mask && !grep { !$flag_letters{$_} } split //, "$set$mask";
            }
            $r{flags} = $f;
        } elsif ($w =~ /^icmp6?-type$/) { $r{icmp} = [ $self->icmp_types($w, $self->list($t)) ] }
        elsif ($w =~ /^(?:keep|modulate|synproxy|no)$/) {
            $self->fail('syntax error') unless @t && $t[0] =~ /^state/;
            shift @t;
            $r{state} = "$w state";
            $r{state} .= ' (' . $self->parens($t) . ')' if @t && $t[0] eq '(';
        } elsif ($w eq 'allow-opts') { $r{allow} = 1 }
        elsif ($w eq 'label') {
            my $l = shift(@t) // $self->fail('syntax error');
            $l =~ s/^"(.*)"$/$1/s;
            $self->fail('rule label too long (max 63 chars)') if length $l > 63;
            push @{ $r{labels} }, $l;
            $self->fail('label option used too many times, max 5') if @{ $r{labels} } > 5;
        } elsif ($w eq 'ridentifier') {
            $r{id} = shift(@t) // $self->fail('syntax error');
            $self->fail('syntax error') unless $r{id} =~ /^\d+$/;
        } elsif ($w =~ /^(?:tag|tagged|!)$/) {
            if ($w eq '!') { $self->fail('syntax error') unless (shift(@t) // '') eq 'tagged'; $w = '! tagged' }
            my $v = shift(@t) // $self->fail('syntax error');
            $v =~ s/^"(.*)"$/$1/;
            push @{ $r{tags} }, "$w $v";
        }
        elsif ($w =~ /^(?:fragment|no-df|random-id|set|prio|min-ttl|max-mss|reassemble|tcp)$/) { push @{ $r{opts} }, $w }
        elsif ($action eq 'scrub') { push @{ $r{opts} }, $w }
        else { $self->fail('syntax error') }
    }
    $self->expand(\%r, \@ifs, \@protos, $src, $sport, $dst, $dport);
}

my %icmp_name = (0 => 'echorep', 3 => 'unreach', 8 => 'echoreq', 11 => 'timex');
my %icmp6_name = (1 => 'unreach', 2 => 'toobig', 3 => 'timex', 128 => 'echoreq', 129 => 'echorep', 133 => 'routersol',
    134 => 'routeradv', 135 => 'neighbrsol', 136 => 'neighbradv');

sub icmp_types {
    my ($self, $word, @types) = @_;
    return map { "$word " . (($word eq 'icmp-type' ? $icmp_name{$_} : $icmp6_name{$_}) // $_) } @types;
}

sub expand {
    my ($self, $r, $ifs, $protos, $src, $sport, $dst, $dport) = @_;
    my $added = 0;
    for my $if (@$ifs) {
        for my $p (@$protos) {
            if (!$with_ports{$p} && grep { defined } @$sport, @$dport) { $self->fail('port only applies to tcp/udp/sctp') }
            $self->fail('flags only apply to tcp') if defined $r->{flags} && $r->{flags} ne 'any' && $p ne 'tcp' && $p ne '';
            for my $icmp (@{ $r->{icmp} // [''] }) {
                for my $s (@$src) {
                    for my $sp (@$sport) {
                        for my $d (@$dst) {
                            for my $dp (@$dport) {
                                my %af = map { $_ => 1 } grep { defined } $r->{af}, $s->{af}, $d->{af};
                                next if keys %af > 1;
                                my ($af) = keys %af;
                                next if ($af // '') eq 'inet' && $p eq 'ipv6-icmp' || ($af // '') eq 'inet6' && $p eq 'icmp';
                                push @{ $self->{rules} }, $self->render($r, $if, $p, $icmp, $af, $s->{text}, $sp, $d->{text}, $dp);
                                $added++;
                            }
                        }
                    }
                }
            }
        }
    }
    $self->fail('rule expands to no valid combination') unless $added;
}

# one rule as pfctl -sr prints it
sub render {
    my ($self, $r, $if, $p, $icmp, $af, $s, $sp, $d, $dp) = @_;
    my @o = ($r->{head});
    push @o, $r->{dir} if $r->{dir};
    push @o, 'log' if $r->{log};
    push @o, 'quick' if $r->{quick};
    push @o, "on $if" if $if ne '';
    push @o, $r->{route} if $r->{route};
    push @o, $af if defined $af;
    push @o, "proto $p" if $p ne '';
    if ($s eq 'any' && $d eq 'any' && !defined $sp && !defined $dp) {
        push @o, 'all';
    } else {
        push @o, "from $s";
        push @o, "port $sp" if defined $sp;
        push @o, "to $d";
        push @o, "port $dp" if defined $dp;
    }
    my $state = $r->{state} // ($r->{head} eq 'pass' ? 'keep state' : '');
    if (defined $r->{flags} && $r->{flags} ne 'any') { push @o, "flags $r->{flags}" }
    elsif ($r->{head} eq 'pass' && ($p eq '' || $p eq 'tcp') && $state ne 'no state') {
        push @o, defined $r->{flags} ? 'flags any' : 'flags S/SA';
    }
    push @o, $icmp if $icmp ne '';
    push @o, $state if $state ne '' && !($r->{head} =~ /^block/);
    push @o, @{ $r->{opts} };
    push @o, 'allow-opts' if $r->{allow};
    push @o, map { "label \"$_\"" } @{ $r->{labels} };
    push @o, "ridentifier " . (0 + $r->{id}) if defined $r->{id};
    push @o, (grep { /^tag / } @{ $r->{tags} // [] }), grep { !/^tag / } @{ $r->{tags} // [] };
    return [ join(' ', @o), $r->{labels} ];
}

sub antispoof {
    my ($self, @t) = @_;
    my $if;
    my $id = '';
    while (@t) {
        my $w = shift @t;
        if ($w eq 'for') { ($if) = $self->list(\@t) }
        elsif ($w eq 'ridentifier') { $id = ' ridentifier ' . shift @t }
    }
    $self->fail('syntax error') unless defined $if;
    push @{ $self->{rules} }, ["block drop in log on ! $if inet from $if:network to any$id"];
}

1;
